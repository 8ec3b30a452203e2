"""The Flax checkpoint: what is saved comes back, a folder is whole or not there, and damage is an error."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint
import pytest
from flax import nnx
from reference_cases import CASES, load_case

from flax_rerank import CheckpointError, FlaxAutoReranker, FlaxLLMReranker, FlaxReranker
from flax_rerank.checkpoint import FORMAT_VERSION

# Short pairs only: few shapes are compiled.
PAIRS = [load_case("encoder-bert").pairs[i] for i in (0, 1, 2, 5, 10, 11)]


def load(folder, **arguments):
    return FlaxAutoReranker.from_finetuned(str(folder), devices="cpu:0", **arguments)


def params_of(reranker):
    leaves = jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(reranker.model)))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module")
def saved(reranker, tmp_path_factory):
    """A checkpoint of the BERT case; not to be changed."""
    path = tmp_path_factory.mktemp("saved") / "model"
    reranker("encoder-bert").save(path)
    return path


@pytest.fixture
def folder(saved, tmp_path):
    """A checkpoint of the BERT case, to be changed."""
    return shutil.copytree(saved, tmp_path / "model")


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", ["encoder-bert", "encoder-xlmr"])
def test_a_saved_model_gives_the_same_scores_bit_for_bit(reranker, tmp_path, name):
    original = reranker(name)
    original.save(tmp_path / "out")
    restored = load(tmp_path / "out")
    assert type(restored) is FlaxReranker
    assert restored.compute_score(PAIRS) == original.compute_score(PAIRS)


def test_every_parameter_comes_back(reranker, saved):
    original, restored = params_of(reranker("encoder-bert")), params_of(load(saved))
    assert original.keys() == restored.keys()
    assert len(original) > 15
    for name, array in original.items():
        assert array.dtype == restored[name].dtype == np.float32
        assert array.tobytes() == restored[name].tobytes()


def test_a_checkpoint_holds_no_pytorch_file(saved):
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert {"config.json", "tokenizer.json"} <= {path.name for path in files}
    assert not [path for path in files if path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".pkl")]


def test_it_loads_when_the_source_is_gone(tmp_path):
    source = shutil.copytree(CASES / "encoder-bert", tmp_path / "source")
    load(source).save(tmp_path / "out")
    shutil.rmtree(source)
    assert type(load(tmp_path / "out")) is FlaxReranker


def test_the_config_of_the_source_is_kept_through_a_second_save(saved, tmp_path):
    load(saved).save(tmp_path / "again")
    first, second = (json.loads((path / "config.json").read_text()) for path in (saved, tmp_path / "again"))
    assert first == second
    assert first["source_config"] == json.loads((CASES / "encoder-bert" / "config.json").read_text())


@pytest.mark.parametrize("name", ["anything", "checkpoint-500", "bge-reranker-base", "bge-reranker-v2-gemma"])
def test_the_class_is_known_whatever_the_name_of_the_folder(saved, tmp_path, name):
    assert type(load(shutil.copytree(saved, tmp_path / name))) is FlaxReranker


def test_another_class_than_that_of_the_checkpoint_is_refused(saved):
    with pytest.raises(ValueError, match=r"encoder-only-base.*FlaxLLMReranker"):
        FlaxLLMReranker(str(saved), devices="cpu:0")


def test_bfloat16_is_saved_and_comes_back_in_either_dtype(tmp_path):
    original = load(CASES / "encoder-bert", use_bf16=True)
    original.save(tmp_path / "out")
    same, wider = load(tmp_path / "out", use_bf16=True), load(tmp_path / "out")
    assert same.compute_score(PAIRS) == original.compute_score(PAIRS)
    for name, array in params_of(original).items():
        assert params_of(wider)[name].dtype == np.float32
        np.testing.assert_array_equal(params_of(wider)[name], array.astype(np.float32))


def test_float32_is_saved_and_comes_back_in_bfloat16(saved):
    direct, restored = (params_of(load(path, dtype="bfloat16")) for path in (CASES / "encoder-bert", saved))
    for name, array in direct.items():
        assert restored[name].dtype.name == "bfloat16"
        assert array.tobytes() == restored[name].tobytes()


def test_it_is_restored_onto_the_devices_asked_for(saved):
    reranker = FlaxAutoReranker.from_finetuned(str(saved), devices=["cpu:2", "cpu:5"])
    for leaf in jax.tree.leaves(nnx.state(reranker.model)):
        assert {device.id for device in leaf.devices()} == {2, 5}


# The folder


def test_missing_parent_folders_are_made(reranker, tmp_path):
    reranker("encoder-bert").save(tmp_path / "a" / "b" / "model")
    assert (tmp_path / "a" / "b" / "model" / "config.json").is_file()


def test_a_relative_path_is_taken_from_the_working_folder(reranker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reranker("encoder-bert").save("model")
    assert os.listdir(tmp_path) == ["model"]
    assert type(load("model")) is FlaxReranker


def test_the_folder_has_the_permissions_of_any_new_folder(saved, tmp_path):
    (tmp_path / "new").mkdir()
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE((tmp_path / "new").stat().st_mode)


@pytest.mark.parametrize("empty", [True, False])
def test_an_existing_folder_is_refused_and_left_as_it_is(reranker, tmp_path, empty):
    out = tmp_path / "out"
    out.mkdir()
    if not empty:
        (out / "mine.txt").write_text("keep")
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(FileExistsError, match="overwrite") as caught:
        reranker("encoder-bert").save(out)
    assert str(out) in str(caught.value)
    assert sorted(path.name for path in out.iterdir()) == before
    assert os.listdir(tmp_path) == ["out"]


def test_overwrite_replaces_the_whole_folder(reranker, folder):
    (folder / "stale.txt").write_text("old")
    model = reranker("encoder-xlmr")
    model.save(folder, overwrite=True)
    assert not (folder / "stale.txt").exists()
    assert load(folder).compute_score(PAIRS) == model.compute_score(PAIRS)
    assert os.listdir(folder.parent) == ["model"]


def test_a_model_may_be_saved_over_the_folder_it_came_from(folder):
    model = load(folder)
    model.save(folder, overwrite=True)
    before, after = params_of(model), params_of(load(folder))
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)


def fails(monkeypatch, owner, name, error, affected):
    """`owner.name` raises `error` the next time that its arguments are `affected`."""
    function = getattr(owner, name)
    errors = [error]

    def replacement(*args, **kwargs):
        if errors and affected(*args):
            raise errors.pop()
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, replacement)


def break_tokenizer(monkeypatch, error):
    fails(monkeypatch, shutil, "copyfile", error, lambda source, target: source.name == "tokenizer.json")


def break_params(monkeypatch, error):
    fails(monkeypatch, orbax.checkpoint.StandardCheckpointer, "save", error, lambda *args: True)


def break_config(monkeypatch, error):
    fails(monkeypatch, Path, "write_text", error, lambda path, *args: path.name == "config.json")


def break_replace(monkeypatch, error):
    fails(monkeypatch, os, "replace", error, lambda source, target: Path(target).name == "model")


BREAKS = [break_tokenizer, break_params, break_config, break_replace]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("breaks", BREAKS)
def test_a_save_that_fails_leaves_nothing_behind(reranker, tmp_path, monkeypatch, breaks, error):
    model = reranker("encoder-bert")
    with monkeypatch.context() as broken:
        breaks(broken, error)
        with pytest.raises(type(error)):
            model.save(tmp_path / "model")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("breaks", BREAKS)
def test_a_save_that_fails_leaves_the_old_checkpoint_whole(reranker, folder, monkeypatch, breaks):
    model = reranker("encoder-xlmr")
    with monkeypatch.context() as broken:
        breaks(broken, OSError("disk full"))
        with pytest.raises(OSError, match="disk full"):
            model.save(folder, overwrite=True)
    assert os.listdir(folder.parent) == ["model"]
    assert load(folder).compute_score(PAIRS) == reranker("encoder-bert").compute_score(PAIRS)


# Damage


def test_a_newer_format_is_refused_with_both_versions(folder):
    change_config(folder, format_version=FORMAT_VERSION + 41)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert f"format version is {FORMAT_VERSION + 41}" in str(caught.value)
    assert f"knows up to {FORMAT_VERSION}" in str(caught.value)


def test_a_newer_format_is_refused_even_with_a_class_that_is_not_known_here(folder):
    change_config(folder, format_version=FORMAT_VERSION + 1, model_class="encoder-only-new", architecture="New")
    with pytest.raises(CheckpointError, match=f"format version is {FORMAT_VERSION + 1}"):
        load(folder)


def test_missing_parameters_are_named_and_where(folder):
    shutil.rmtree(folder / "params")
    with pytest.raises(FileNotFoundError, match="params") as caught:
        load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("missing", ["tokenizer.json", "config.json"])
def test_a_missing_file_is_named_and_where(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing.partition(".")[0]) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def remove(folder, pattern):
    for path in (folder / "params").glob(pattern):
        path.unlink()


def truncate(folder, pattern):
    for path in (folder / "params").glob(pattern):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def resize(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    change_config(folder, architecture_config=config["architecture_config"] | changes)


DAMAGE = {
    "manifest-removed": lambda folder: remove(folder, "manifest.ocdbt"),
    "manifest-truncated": lambda folder: truncate(folder, "manifest.ocdbt"),
    "index-removed": lambda folder: remove(folder, "d/*"),
    "index-truncated": lambda folder: truncate(folder, "d/*"),
    "arrays-removed": lambda folder: remove(folder, "ocdbt.process_0/d/*"),
    "arrays-truncated": lambda folder: truncate(folder, "ocdbt.process_0/d/*"),
    "a-layer-less": lambda folder: resize(folder, num_hidden_layers=1),
    "a-layer-more": lambda folder: resize(folder, num_hidden_layers=3),
    "a-smaller-vocabulary": lambda folder: resize(folder, vocab_size=650),
    "a-larger-width": lambda folder: resize(folder, hidden_size=64),
}
PROBE = """
import json, sys
from flax_rerank import FlaxAutoReranker
results = {}
for folder in sys.argv[1:]:
    try:
        FlaxAutoReranker.from_finetuned(folder, devices="cpu:0")
        results[folder] = ["loaded", ""]
    except Exception as error:
        results[folder] = [type(error).__name__, str(error)]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def damaged(saved, tmp_path_factory):
    """What loading each damaged copy came to: the name of the error, its text, and the folder.

    In another process: where a read fails, orbax leaves futures behind that complain whenever they are collected.
    """
    root = tmp_path_factory.mktemp("damaged")
    folders = {name: shutil.copytree(saved, root / name) for name in DAMAGE}
    for name, damage in DAMAGE.items():
        damage(folders[name])
    process = subprocess.run(
        [sys.executable, "-c", PROBE, *map(str, folders.values())],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    results = json.loads(process.stdout)
    return {name: (*results[str(folder)], str(folder)) for name, folder in folders.items()}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_parameters_are_a_checkpoint_error(damaged, damage):
    error, message, folder = damaged[damage]
    assert error == "CheckpointError"
    assert folder in message
    assert len(message) < 3000
