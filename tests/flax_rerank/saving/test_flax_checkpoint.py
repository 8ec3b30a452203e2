"""The Flax checkpoint: what is saved comes back, a folder is whole or not there, and damage is an error."""

import json
import os
import shutil
import stat
from datetime import datetime, timedelta
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp_v0
import orbax.checkpoint.experimental.v1 as ocp
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from reference_cases import CASES, load_case

from flax_rerank import CheckpointError, FlaxAutoReranker, FlaxLLMReranker, FlaxReranker, __version__
from flax_rerank.checkpoint import FORMAT_VERSION, read_manifest, verify_manifest
from flax_rerank.conversion import convert
from flax_rerank.params import parameters_of
from flax_rerank.saving import flax_checkpoint

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


@pytest.mark.parametrize(
    "change", [{"files": {"a": 1}}, {"sizes": {"a": "1"}}, {"sizes": None}, {"source": {"name": 1}}]
)
def test_a_manifest_of_another_shape_names_the_field(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(CheckpointError, match=rf"manifest\.json is damaged \({next(iter(change))} must "):
        load(folder)


def test_a_tokenizer_that_is_not_that_of_the_manifest_is_refused(folder):
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b'"the"', b'"The"'))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged: its sha256 is"):
        load(folder)


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def test_a_saved_model_gives_the_same_scores_bit_for_bit(reranker, tmp_path):
    original = reranker("encoder-xlmr")
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
    assert {"config.json", "tokenizer.json", "manifest.json"} <= {path.name for path in files}
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
    with pytest.raises(ValueError, match=r"kind encoder-only-base, not decoder-only-base"):
        FlaxLLMReranker(str(saved), devices="cpu:0")


def test_bfloat16_is_saved_and_comes_back_in_either_dtype(tmp_path):
    original = load(CASES / "encoder-bert", use_bf16=True)
    original.save(tmp_path / "out")
    same, wider = params_of(load(tmp_path / "out", use_bf16=True)), params_of(load(tmp_path / "out"))
    for name, array in params_of(original).items():
        assert (array.dtype.name, wider[name].dtype) == ("bfloat16", np.float32)
        assert same[name].tobytes() == array.tobytes()
        np.testing.assert_array_equal(wider[name], array.astype(np.float32))


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
    (folder / "vocab.txt").write_text("of another tokenizer")
    model = reranker("encoder-xlmr")
    model.save(folder, overwrite=True)
    assert not (folder / "vocab.txt").exists()
    assert load(folder).compute_score(PAIRS) == model.compute_score(PAIRS)
    assert os.listdir(folder.parent) == ["model"]


@pytest.mark.parametrize(
    ("config", "entry", "named"),
    [
        (None, "params/train.py", "no config.json that says"),
        ('{"learning_rate": 0.1}', "params/train.py", "no config.json that says"),
        ("kept", "notes.txt", "no config.json that says"),
        ('{"format": "flax-rerank"}', "notes.txt", "it holds notes.txt"),
        ('{"format": "flax-rerank"}', "src/main.py", "it holds src"),
        ('{"format": "flax-rerank"}', "tokenizer.json/mine.txt", "it holds tokenizer.json"),
        ('{"format": "flax-rerank"}', "params/train.py", "no manifest.json in"),
    ],
)
def test_a_folder_that_is_not_a_checkpoint_alone_is_never_replaced(reranker, tmp_path, config, entry, named):
    out = tmp_path / "out"
    (out / entry).parent.mkdir(parents=True)
    (out / entry).write_text("keep")
    if config is not None:
        (out / "config.json").write_text(config)
    with pytest.raises(FileExistsError, match=f"out is not overwritten: .*{named}"):
        reranker("encoder-bert").save(out, overwrite=True)
    with pytest.raises(FileExistsError, match=f"out is not overwritten: .*{named}"):
        convert(str(CASES / "encoder-bert"), out, overwrite=True)
    assert (out / entry).read_text() == "keep"
    assert os.listdir(tmp_path) == ["out"]


def test_a_file_among_the_parameters_that_the_manifest_does_not_list_is_kept(reranker, folder):
    (folder / "params" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match=r"it holds params/mine\.txt, which is not in its manifest\.json"):
        reranker("encoder-bert").save(folder, overwrite=True)
    assert (folder / "params" / "mine.txt").read_text() == "keep"


def test_through_a_link_the_folder_is_replaced_and_the_link_stays(reranker, folder):
    link = folder.parent / "link"
    link.symlink_to(folder)
    reranker("encoder-xlmr").save(link, overwrite=True)
    assert link.is_symlink()
    assert verify_manifest(folder) == []
    assert read_manifest(folder)["source"]["name"] == "encoder-xlmr"


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
    fails(monkeypatch, flax_checkpoint, "write_params", error, lambda *args: True)


def break_manifest(monkeypatch, error):
    fails(monkeypatch, Path, "write_text", error, lambda path, *args: path.name == "manifest.json")


def break_config(monkeypatch, error):
    fails(monkeypatch, Path, "write_bytes", error, lambda path, *args: path.name == "config.json")


def break_replace(monkeypatch, error):
    fails(monkeypatch, os, "replace", error, lambda source, target: Path(target).name == "model")


BREAKS = [break_tokenizer, break_params, break_manifest, break_config, break_replace]


@pytest.mark.parametrize("breaks", BREAKS)
def test_a_save_that_is_interrupted_leaves_nothing_behind(reranker, tmp_path, monkeypatch, breaks):
    model = reranker("encoder-bert")
    with monkeypatch.context() as broken:
        breaks(broken, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
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
    assert verify_manifest(folder) == []
    assert read_manifest(folder)["source"]["name"] == "encoder-bert"


# Damage


def test_a_newer_format_is_refused_with_both_versions(folder):
    change_config(folder, format_version=FORMAT_VERSION + 41)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert f"format version is {FORMAT_VERSION + 41}, this flax-rerank reads 2 and 3: up" in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("version", [1, None, "2"])
def test_a_format_that_is_gone_is_to_be_converted_again(folder, version):
    change_config(folder, format_version=version)
    with pytest.raises(CheckpointError, match=f"version is {version}, .*: convert the source again"):
        load(folder)


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
    change_config(folder, source_config=config["source_config"] | changes)


DAMAGE = {
    "index-removed": (
        lambda folder: remove(folder, "state/manifest.ocdbt"),
        r"params/state/manifest\.ocdbt is missing",
    ),
    "arrays-removed": (lambda folder: remove(folder, "state/*/d/*"), r"params/state/ocdbt\S* is missing"),
    "arrays-truncated": (
        lambda folder: truncate(folder, "state/*/d/*"),
        r"params/state/ocdbt\S* is damaged: it has [\d,]+ bytes, manifest\.json has [\d,]+",
    ),
    "a-layer-less": (lambda folder: resize(folder, num_hidden_layers=1), r"has shape \[2, .*asks for \[1, "),
    "a-layer-more": (lambda folder: resize(folder, num_hidden_layers=3), r"has shape \[2, .*asks for \[3, "),
    "another-vocabulary": (lambda folder: resize(folder, vocab_size=750), r"has shape \[700, 32\], .* \[750, 32\]"),
    "another-module": (lambda folder: change_config(folder, **decoder()), "layers.mlp.up_proj.kernel is missing"),
}


def decoder():
    """The architecture of another checkpoint, with the class that it has."""
    config = json.loads((CASES / "decoder-qwen2" / "config.json").read_text())
    return {"model_class": "decoder-only-base", "source_config": config}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_parameters_are_a_checkpoint_error(folder, damage):
    change, expected = DAMAGE[damage]
    change(folder)
    with pytest.raises(CheckpointError, match=expected) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 3000


# The manifest


def test_the_manifest_says_where_a_checkpoint_came_from(saved):
    manifest = read_manifest(saved)
    assert manifest["source"] == {"name": "encoder-bert", "revision": None, "files": None}
    assert manifest["dtype"] == "float32"
    assert manifest["converter"] == f"flax-rerank {__version__}"
    made = datetime.fromisoformat(manifest["date"])
    assert made.utcoffset() == timedelta(0)
    assert abs(datetime.now(made.tzinfo) - made) < timedelta(hours=1)
    files = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    assert manifest["files"].keys() == files - {"manifest.json"}
    assert verify_manifest(saved) == []


def test_the_source_stays_known_through_a_second_save(saved, tmp_path):
    load(shutil.copytree(saved, tmp_path / "renamed")).save(tmp_path / "again")
    assert read_manifest(tmp_path / "again")["source"] == read_manifest(saved)["source"]


def test_one_flipped_bit_in_any_file_is_found_and_named(folder):
    names = list(read_manifest(folder)["files"])
    assert "config.json" in names
    for name in names:
        whole = (folder / name).read_bytes()
        if not whole:
            continue
        (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        (fault,) = verify_manifest(folder)
        assert fault.startswith(f"{name} is damaged")
        (folder / name).write_bytes(whole)
    assert verify_manifest(folder) == []


def test_files_missing_and_left_over_are_named(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "params" / "more").write_text("x")
    assert verify_manifest(folder) == ["tokenizer.json is missing", "params/more is not in manifest.json"]


def test_a_manifest_that_is_none_is_an_error(folder):
    (folder / "manifest.json").write_text('{"files": []}')
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        read_manifest(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json in"):
        verify_manifest(folder)
    assert type(load(folder)) is FlaxReranker


# Arguments for scoring


def test_the_arguments_for_scoring_are_kept_and_the_callers_come_first(tmp_path):
    arguments = {
        "cutoff_layers": [3, 5],
        "prompt": "Is B good?",
        "query_instruction_for_rerank": "Q: ",
        "passage_instruction_format": "{}-{}",
        "compress_ratio": 2,
        "compress_layers": [4],
        "head_index": "layer",
        "attention_softcap": "config",
        "max_length": 100,
        "normalize": True,
    }
    load(CASES / "lightweight-gemma2", **arguments, batch_size=3).save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["scoring"] == arguments
    kept = load(tmp_path / "out", normalize=False, prompt="Good?")
    settings = kept.settings
    assert (settings.cutoff_layers, settings.compress_layers, settings.compress_ratio) == ((3, 5), (4,), 2)
    assert (settings.head_index, settings.attention_softcap, settings.max_length) == ("layer", "config", 100)
    assert (settings.query_instruction.text, settings.passage_instruction.format) == ("Q: ", "{}-{}")
    assert (settings.normalize, settings.prompt, settings.batch_size) == (False, "Good?", 128)
    assert kept.spec.config.attention_softcap == 50.0


# The parameters on disk


def test_orbax_itself_reads_the_parameters_layer_by_layer(saved, reranker):
    tree = flatten_dict(ocp.load(saved / "params"), sep=".")
    for path, param in parameters_of(reranker("encoder-bert").model).items():
        array = np.asarray(param.get_value())
        layers = [tree.pop(f"{path}.{i}") for i in range(2)] if path.startswith("layers.") else tree.pop(path)
        np.testing.assert_array_equal(layers, array)
    assert tree == {}


def test_a_checkpoint_of_format_2_is_read(folder, reranker):
    shutil.rmtree(folder / "params")
    with ocp_v0.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "params", nnx.to_pure_dict(nnx.state(reranker("encoder-bert").model)))
    (folder / "manifest.json").unlink()
    change_config(folder, format_version=2)
    original, restored = params_of(reranker("encoder-bert")), params_of(load(folder))
    for name, array in original.items():
        assert array.tobytes() == restored[name].tobytes()


@pytest.mark.filterwarnings("ignore:'Yes' is 2 tokens:UserWarning")
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_kept_head_is_kept_when_the_model_is_saved(tmp_path, overwrite):
    convert(str(CASES / "decoder-llama"), tmp_path / "one", keep_head=True)
    kept = (tmp_path / "one" / "kept.safetensors").read_bytes()
    model = load(tmp_path / "one")
    out = tmp_path / ("one" if overwrite else "two")
    model.save(out, overwrite=overwrite)
    assert (out / "kept.safetensors").read_bytes() == kept
    assert verify_manifest(out) == []


# Killed processes


def test_a_checkpoint_that_was_about_to_be_replaced_gets_its_place_again(folder, reranker):
    (folder.parent / ".model.partial-x").mkdir()
    folder.rename(folder.parent / ".model.partial-x" / "old")
    with pytest.raises(FileExistsError, match="overwrite"):
        reranker("encoder-bert").save(folder)
    assert os.listdir(folder.parent) == ["model"]
    assert verify_manifest(folder) == []


def test_a_disk_with_too_little_room_is_refused_before_anything_is_written(reranker, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"No space left on device: [\d,]+ bytes are needed, 1,000 are free: '.*model'"):
        reranker("encoder-bert").save(tmp_path / "model")
    assert os.listdir(tmp_path) == []
