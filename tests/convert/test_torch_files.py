"""Weight files: what can be read is read exactly, and every reason why not stands in one error."""

import json
import shutil
import sys

import numpy as np
import pytest
from reference_cases import CASES, open_torch
from safetensors.numpy import load_file, save_file

from flax_rerank import FlaxAutoReranker
from flax_rerank.convert.torch_files import open_torch_files, write_safetensors
from flax_rerank.params import CheckpointError

INDEX = "model.safetensors.index.json"
TENSORS = {f"t{i}": np.arange(6, dtype=np.float32).reshape(2, 3) + 10 * i for i in range(6)}


def shard(folder, tensors, parts=3):
    """Write `tensors` in so many files with an index, each tensor in another file than the one before."""
    names = [f"model-{part + 1:05d}-of-{parts:05d}.safetensors" for part in range(parts)]
    weight_map = {tensor: names[i % parts] for i, tensor in enumerate(tensors)}
    for name in names:
        save_file({tensor: tensors[tensor] for tensor in tensors if weight_map[tensor] == name}, folder / name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return names


def faults_of(folder):
    with pytest.raises(CheckpointError) as caught:
        open_torch_files(folder)
    assert str(folder) in str(caught.value)
    return caught.value.faults


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_tensors_are_read_in_their_stored_dtype(tmp_path, dtype):
    stored = {"a": np.asarray([[1.5, -2.0], [0.1, 3.0]], np.float32).astype(dtype)}
    save_file(stored, tmp_path / "model.safetensors")
    source = open_torch_files(tmp_path)
    assert source.shapes() == {"a": (2, 2)}
    assert source.read("a").dtype == np.dtype(dtype)
    assert source.read("a").tobytes() == stored["a"].tobytes()
    assert source.dtypes() == {"a": np.dtype(dtype)}
    part = source.read("a", (slice(1, 2), slice(0, 1)))
    assert part.shape == (1, 1)
    assert part.tobytes() == stored["a"][1:2, :1].tobytes()


@pytest.mark.parametrize("name", ["encoder-bert", "encoder-xlmr"])
def test_a_sharded_checkpoint_gives_the_same_parameters(tmp_path, name):
    folder = shutil.copytree(CASES / name, tmp_path / name)
    shard(folder, load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    single, sharded = open_torch(CASES / name), open_torch(folder)
    assert single.shapes() == sharded.shapes()
    assert len(single.shapes()) > 10
    for path in single.shapes():
        left, right = (each.read(path, np.dtype(np.float32)) for each in (single, sharded))
        assert left.tobytes() == right.tobytes()


def test_safetensors_are_preferred_to_a_pickle(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    assert open_torch_files(tmp_path).shapes().keys() == TENSORS.keys()


CORRUPT = {
    "empty": lambda whole: b"",
    "garbage": lambda whole: b"these are no tensors" * 20,
    "header-only": lambda whole: whole[:50],
    "truncated": lambda whole: whole[:-10],
    "too-long": lambda whole: whole + b"more",
}


@pytest.mark.parametrize("damage", CORRUPT)
def test_a_corrupt_file_is_refused_by_name(tmp_path, damage):
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file)
    file.write_bytes(CORRUPT[damage](file.read_bytes()))
    (fault,) = faults_of(tmp_path)
    assert "model.safetensors is truncated or corrupt" in fault


def test_a_missing_shard_is_refused_by_name_and_nothing_else_is_blamed(tmp_path):
    names = shard(tmp_path, TENSORS)
    (tmp_path / names[1]).unlink()
    assert faults_of(tmp_path) == (f"{names[1]} is missing",)


def test_all_bad_shards_stand_in_one_error(tmp_path):
    names = shard(tmp_path, TENSORS, parts=4)
    (tmp_path / names[0]).unlink()
    (tmp_path / names[2]).write_bytes((tmp_path / names[2]).read_bytes()[:-1])
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["phantom"] = names[3]
    (tmp_path / INDEX).write_text(json.dumps(index))
    faults = faults_of(tmp_path)
    assert len(faults) == 3
    assert faults[0] == f"{names[0]} is missing"
    assert faults[1].startswith(f"{names[2]} is truncated or corrupt")
    assert faults[2] == f"tensor phantom is not in {names[3]}, where the index has it"


def test_an_index_that_puts_a_tensor_into_the_wrong_shard_is_refused(tmp_path):
    names = shard(tmp_path, TENSORS)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["t0"] = names[1]
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert faults_of(tmp_path) == (f"tensor t0 is not in {names[1]}, where the index has it",)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    names = shard(tmp_path, TENSORS)
    save_file(load_file(tmp_path / names[1]) | {"t0": TENSORS["t0"]}, tmp_path / names[1])
    assert faults_of(tmp_path) == ("tensor t0 is in two files",)


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"{}", b"\xff\xfe", b'{"weight_map": []}', b'{"weight_map": null}', b'{"weight_map": {"t0": 3}}'],
)
def test_a_damaged_index_is_refused(tmp_path, content):
    (tmp_path / INDEX).write_bytes(content)
    (fault,) = faults_of(tmp_path)
    assert INDEX in fault


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "{outside}/other.safetensors", "a/../../other.safetensors", "", "."]
)
def test_an_index_that_names_a_file_outside_of_the_folder_is_refused(tmp_path, name):
    folder = tmp_path / "model"
    (folder / "a").mkdir(parents=True)
    save_file(TENSORS, tmp_path / "other.safetensors")
    weight_map = dict.fromkeys(TENSORS, name.format(outside=tmp_path))
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (fault,) = faults_of(folder)
    assert "which is not a file in the folder" in fault


def test_the_files_of_an_index_may_be_links(tmp_path):
    folder = tmp_path / "snapshot"
    folder.mkdir()
    save_file(TENSORS, tmp_path / "blob")
    (folder / "one.safetensors").symlink_to("../blob")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, "one.safetensors")}))
    assert open_torch_files(folder).shapes().keys() == TENSORS.keys()


def test_whole_numbers_are_no_weights(tmp_path):
    save_file({"a": np.ones(3, np.int8), "b": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    (fault,) = faults_of(tmp_path)
    assert "tensor a in model.safetensors has dtype I8" in fault
    assert "float32, float16 and bfloat16" in fault


def test_position_ids_may_be_whole_numbers(tmp_path):
    save_file({"bert.embeddings.position_ids": np.arange(9)[None]}, tmp_path / "model.safetensors")
    assert open_torch_files(tmp_path).shapes() == {"bert.embeddings.position_ids": (1, 9)}


def test_written_tensors_are_read_back(tmp_path):
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.asarray([[1.5], [-2.0]], np.float16),
        "c": np.asarray([0.1, 3.0], "bfloat16"),
        "d": np.zeros((0, 4), np.float32),
    }
    parts = [tensors["a"][:1], tensors["a"][1:], tensors["b"].T, tensors["c"], tensors["d"]]
    described = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    write_safetensors(tmp_path / "model.safetensors", described, iter(parts))
    source = open_torch_files(tmp_path)
    for name, read in load_file(tmp_path / "model.safetensors").items():
        for found in (read, source.read(name)):
            assert (found.dtype, found.shape) == (tensors[name].dtype, tensors[name].shape)
            assert found.tobytes() == tensors[name].tobytes()


def test_a_folder_without_weights_says_what_was_looked_for_and_where(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        open_torch_files(tmp_path)
    for part in (str(tmp_path), "model.safetensors", INDEX, "pytorch_model.bin"):
        assert part in str(caught.value)


def test_a_pickle_without_torch_says_how_to_get_safetensors(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    folder = shutil.copytree(CASES / "encoder-bert", tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ImportError) as caught:
        FlaxAutoReranker.from_finetuned(str(folder), devices="cpu:0")
    for part in (str(folder), "pytorch_model.bin", "flax-rerank[torch]", "safe_serialization=True"):
        assert part in str(caught.value)
