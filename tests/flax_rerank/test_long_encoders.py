"""8,192 tokens: rotary angles with NTK scaling, and windows in blocks, against scores of transformers in float64."""

import json
import shutil

import pytest
from reference_cases import CASES, load_case
from safetensors.numpy import load_file, save_file

from flax_rerank import FlaxReranker
from flax_rerank.batching import Shape

pytestmark = pytest.mark.optimized


def first_layers(name, folder, depth):
    """The model of a case cut after some of its layers: enough for long attention, and soon computed."""
    shutil.copytree(CASES / name, folder)
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": depth}
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:depth]
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    left_out = [f".{layer}." for layer in range(depth, 9)]
    kept = {key: tensor for key, tensor in tensors.items() if not any(part in key for part in left_out)}
    save_file(kept, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "expected"), [("encoder-gte-new-ntk", 2.249365335670296), ("encoder-modernbert-cls", 1.9238331108394318)]
)
def test_scores_of_8192_tokens_are_the_exact_ones(tmp_path, name, expected):
    passage = " ".join(12 * [passage for _, passage in load_case(name).pairs])
    model = FlaxReranker(first_layers(name, tmp_path / name, 2), devices="cpu:0")
    prepared = model.prepare(("what is panda?", passage), max_length=8192, table=(Shape(1, 8192),))
    assert prepared.tokens.tolist() == [8192]
    assert model.run(prepared).scores[0] == pytest.approx(expected, abs=1e-4)
