"""Checkpoints restore onto any devices: each has its part, and each part is read once."""

import json
import shutil
import warnings
from itertools import pairwise

import jax
import numpy as np
import pytest
from reference_cases import CASES
from safetensors.numpy import load_file, save_file

from flax_rerank import FlaxAutoReranker, ShardingRules
from flax_rerank.checkpoint.params import StoredParams
from flax_rerank.conversion import convert
from flax_rerank.convert import TorchCheckpoint
from flax_rerank.params import parameters_of

pytestmark = pytest.mark.filterwarnings("ignore:'Yes' is 2 tokens:UserWarning")
DEVICES = 8
EMBEDDINGS = {
    "encoder-xlmr": "roberta.embeddings.word_embeddings.weight",
    "decoder-gemma": "model.embed_tokens.weight",
}
# Of the same sizes, in parts that eight devices can share.
HEADS = {
    "encoder-xlmr": {"num_attention_heads": 8},
    "decoder-gemma": {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8},
}


@pytest.fixture(scope="module", params=HEADS)
def folders(request, tmp_path_factory):
    """A case with heads and vocabulary that divide by eight, in PyTorch and in Flax."""
    root = tmp_path_factory.mktemp("restore")
    source = shutil.copytree(CASES / request.param, root / "torch")
    # Smaller weights: with those of the cases, rounding grows a hundredfold from layer to layer.
    tensors = {name: tensor / tensor.ndim for name, tensor in load_file(source / "model.safetensors").items()}
    embeddings = tensors[EMBEDDINGS[request.param]]
    tensors[EMBEDDINGS[request.param]] = np.pad(embeddings, ((0, -len(embeddings) % DEVICES), (0, 0)))
    save_file(tensors, source / "model.safetensors")
    config = json.loads((source / "config.json").read_text()) | HEADS[request.param]
    config["vocab_size"] = len(tensors[EMBEDDINGS[request.param]])
    (source / "config.json").write_text(json.dumps(config))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'Yes' is 2 tokens", UserWarning)
        convert(str(source), root / "flax")
    return {"torch": source, "flax": root / "flax"}


def load(folder, **arguments):
    return FlaxAutoReranker.from_finetuned(str(folder), **arguments)


@pytest.mark.parametrize("kind", ["torch", "flax"])
def test_each_of_eight_devices_has_an_eighth_and_no_part_is_read_twice(folders, kind, monkeypatch):
    read, load_leaves, sizes = TorchCheckpoint.read, StoredParams._load, {}

    def noting(self, path, dtype, index=()):
        part = read(self, path, dtype, index)
        sizes[path] = sizes.get(path, 0) + part.size
        return part

    def noting_leaves(self, abstract):
        for name, leaf in abstract.items():
            path = name.rstrip(".0123456789")
            sizes[path] = sizes.get(path, 0) + leaf.size
            assert len(leaf.sharding.device_set) == devices
        return load_leaves(self, abstract)

    monkeypatch.setattr(TorchCheckpoint, "read", noting)
    monkeypatch.setattr(StoredParams, "_load", noting_leaves)
    devices = 1
    one = load(folders[kind], devices="cpu:0", dtype="float32")
    sizes.clear()
    devices = DEVICES
    model = load(folders[kind], mesh=f"model={DEVICES}", dtype="float32").model
    params = parameters_of(model)
    split = [path for path, param in params.items() if not param.get_value().sharding.is_fully_replicated]
    assert sum(params[path].size for path in split) > 0.7 * sum(param.size for param in params.values())
    for path, param in params.items():
        array = param.get_value()
        shards = array.addressable_shards
        assert len({shard.device for shard in shards}) == len(shards) == DEVICES
        assert {shard.data.size for shard in shards} == {array.size // (DEVICES if path in split else 1)}
        assert sizes[path] == array.size
        np.testing.assert_array_equal(array, parameters_of(one.model)[path].get_value())


def test_layers_may_be_split_too(folders):
    devices = [f"cpu:{i}" for i in range(6)]
    rules = ShardingRules(layers="data")
    model = load(folders["flax"], devices=devices, mesh="data=3,model=2", sharding_rules=rules, dtype="float32").model
    one = load(folders["flax"], devices="cpu:0", dtype="float32").model
    for path, param in parameters_of(model).items():
        assert (param.get_value().sharding.spec[:1] == ("data",)) == path.startswith("layers.")
        np.testing.assert_array_equal(param.get_value(), parameters_of(one)[path].get_value())


def test_what_is_saved_from_a_mesh_is_whole(folders, tmp_path):
    sharded = load(folders["flax"], mesh=f"model={DEVICES}", dtype="bfloat16")
    sharded.save(tmp_path / "out")
    wanted = parameters_of(sharded.model)
    stored = StoredParams(tmp_path / "out" / "params")
    assert stored.shapes().keys() == wanted.keys()
    for path, param in wanted.items():
        found = stored.read(path, stored.dtypes()[path])
        assert found.dtype.name == "bfloat16"
        assert found.tobytes() == np.asarray(param.get_value()).tobytes()


def test_replicas_along_the_data_axis_come_from_one_read(folders, monkeypatch):
    parts = []
    put = jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda part, device: parts.append(part) or put(part, device))
    model = load(folders["torch"], mesh="data=4,model=2", dtype="bfloat16").model
    split = [not param.get_value().sharding.is_fully_replicated for param in parameters_of(model).values()]
    assert len(parts) == DEVICES * len(split)
    runs = sum(left is not right for left, right in pairwise(parts)) + 1
    assert runs == sum(2 if each else 1 for each in split)
    assert {param.get_value().dtype.name for param in parameters_of(model).values()} == {"bfloat16"}
