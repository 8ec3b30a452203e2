"""Conversion part by part: the same checkpoint as from memory, whole or not there, and the source as it was."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from reference_cases import CASES, load_case
from safetensors.numpy import load_file, save_file

from flax_rerank import CheckpointError, FlaxAutoReranker, LayerWiseFlaxLLMReranker
from flax_rerank.checkpoint import read_manifest, verify_manifest
from flax_rerank.cli import main
from flax_rerank.conversion import convert
from flax_rerank.convert import TorchCheckpoint

pytestmark = pytest.mark.filterwarnings("ignore:'Yes' is 2 tokens:UserWarning")
ROOT = Path(__file__).parents[3]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def load(folder, **arguments):
    return FlaxAutoReranker.from_finetuned(str(folder), devices="cpu:0", **arguments)


def params_of(reranker):
    leaves = jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(reranker.model)))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_params(left, right):
    left, right = params_of(left), params_of(right)
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert array.dtype == right[name].dtype
        assert array.tobytes() == right[name].tobytes()


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def state_of(folder):
    return {file.name: (sha256(file), file.stat().st_mtime_ns) for file in folder.iterdir() if file.is_file()}


def stored_in(tmp_path, name, dtype):
    """A copy of a case whose tensors are stored in `dtype`."""
    folder = shutil.copytree(CASES / name, tmp_path / f"{name}-{np.dtype(dtype).name}")
    tensors = load_file(folder / "model.safetensors")
    save_file({key: tensor.astype(dtype) for key, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


# What comes out


@pytest.mark.parametrize(
    "name", ["encoder-xlmr", "decoder-gemma", "decoder-llama", "layerwise-minicpm", "lightweight-gemma2"]
)
def test_a_converted_checkpoint_has_the_parameters_of_its_source(tmp_path, name):
    before = state_of(CASES / name)
    done = convert(str(CASES / name), tmp_path / "out")
    assert done.dtype == np.float32
    source, converted = load(CASES / name), load(tmp_path / "out")
    assert type(source) is type(converted)
    assert done.reranker == type(source).__name__
    assert done.parameters == sum(array.size for array in params_of(source).values())
    assert (source.spec.config, source.spec.readout) == (converted.spec.config, converted.spec.readout)
    assert_same_params(source, converted)
    assert verify_manifest(tmp_path / "out") == []
    assert state_of(CASES / name) == before
    assert os.listdir(tmp_path) == ["out"]


def test_a_stack_is_read_layer_by_layer(tmp_path, monkeypatch):
    """What is in memory depends neither on the model nor on a stack of layers."""
    sizes = []
    read = TorchCheckpoint.read

    def noting(self, path, dtype, index=()):
        part = read(self, path, dtype, index)
        sizes.append(part.nbytes)
        return part

    monkeypatch.setattr(TorchCheckpoint, "read", noting)
    done = convert(str(CASES / "lightweight-gemma2"), tmp_path / "out")
    tensors = load_file(CASES / "lightweight-gemma2" / "model.safetensors")
    assert sum(sizes) == done.bytes
    assert max(sizes) == max(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize(
    ("stored", "asked", "written"),
    [
        (BFLOAT16, None, "bfloat16"),
        (np.float16, None, "float32"),
        (BFLOAT16, "float32", "float32"),
        (np.float32, "bfloat16", "bfloat16"),
    ],
)
def test_the_dtype_is_that_of_the_source_unless_another_is_asked_for(tmp_path, stored, asked, written):
    source = stored_in(tmp_path, "encoder-bert", stored)
    assert convert(str(source), tmp_path / "out", dtype=asked).dtype.name == written
    assert read_manifest(tmp_path / "out")["dtype"] == written
    assert_same_params(load(source, dtype=written), load(tmp_path / "out", dtype=written))


def test_the_manifest_has_the_hashes_of_the_source(tmp_path):
    source = CASES / "decoder-llama"
    convert(str(source), tmp_path / "out")
    described = read_manifest(tmp_path / "out")["source"]
    assert (described["name"], described["revision"]) == ("decoder-llama", None)
    files = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert described["files"] == {name: sha256(source / name) for name in files}


def test_a_snapshot_from_the_hub_has_a_revision(tmp_path):
    snapshot = tmp_path / "models--me--reranker" / "snapshots" / "abc123"
    shutil.copytree(CASES / "encoder-bert", snapshot)
    convert(str(snapshot), tmp_path / "out")
    described = read_manifest(tmp_path / "out")["source"]
    assert (described["name"], described["revision"]) == ("me/reranker", "abc123")


def test_an_adapter_is_merged_and_named(tmp_path):
    base, adapter = CASES / "lora-llama", CASES / "lora-llama" / "adapter"
    done = convert(str(base), tmp_path / "out", peft_path=str(adapter))
    assert done.spec.adapter == adapter
    assert_same_params(load(base, peft_path=str(adapter)), load(tmp_path / "out"))
    described = read_manifest(tmp_path / "out")["source"]["adapter"]
    assert described["name"] == "adapter"
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert described["files"] == {name: sha256(adapter / name) for name in names}


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
def test_a_head_is_kept_whole_if_asked_for(tmp_path, dtype):
    source = stored_in(tmp_path, "decoder-llama", dtype)
    convert(str(source), tmp_path / "plain")
    assert not (tmp_path / "plain" / "kept.safetensors").exists()
    convert(str(source), tmp_path / "out", keep_head=True, dtype="float32")
    kept = load_file(tmp_path / "out" / "kept.safetensors")
    head = load_file(source / "model.safetensors")["lm_head.weight"]
    assert kept.keys() == {"lm_head.weight"}
    assert kept["lm_head.weight"].dtype == dtype
    assert kept["lm_head.weight"].tobytes() == head.tobytes()
    assert "kept.safetensors" in read_manifest(tmp_path / "out")["files"]


def test_a_kept_head_has_the_adapter_in_it(tmp_path):
    source = stored_in(tmp_path, "decoder-llama", BFLOAT16)
    head = load_file(source / "model.safetensors")["lm_head.weight"]
    adapter = shutil.copytree(CASES / "lora-llama" / "adapter", tmp_path / "adapter")
    save_file({"base_model.model.lm_head.weight": head * BFLOAT16.type(2)}, adapter / "adapter_model.safetensors")
    convert(str(source), tmp_path / "replaced", keep_head=True, peft_path=str(adapter))
    up, down = np.ones((len(head), 1), np.float32), np.ones((1, head.shape[1]), np.float32)
    low_rank = {"base_model.model.lm_head.lora_B.weight": up, "base_model.model.lm_head.lora_A.weight": down}
    save_file(low_rank, adapter / "adapter_model.safetensors")
    convert(str(source), tmp_path / "updated", keep_head=True, peft_path=str(adapter))
    replaced, updated = (
        load_file(tmp_path / name / "kept.safetensors")["lm_head.weight"] for name in ("replaced", "updated")
    )
    assert replaced.dtype == updated.dtype == BFLOAT16
    np.testing.assert_array_equal(replaced, head * BFLOAT16.type(2))
    scale = json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"]
    np.testing.assert_array_equal(updated, (head.astype(np.float32) + scale).astype(BFLOAT16))


def test_where_no_head_is_left_out_there_is_none_to_keep(tmp_path, caplog):
    convert(str(CASES / "encoder-bert"), tmp_path / "out", keep_head=True)
    assert "there is nothing to keep" in caplog.text
    assert not (tmp_path / "out" / "kept.safetensors").exists()


# What is refused, before anything is written


def test_a_flax_checkpoint_is_refused(tmp_path):
    convert(str(CASES / "encoder-bert"), tmp_path / "one")
    with pytest.raises(ValueError, match="one is a Flax checkpoint already"):
        convert(str(tmp_path / "one"), tmp_path / "two")
    assert os.listdir(tmp_path) == ["one"]


def test_folders_that_lie_in_each_other_are_refused(tmp_path, monkeypatch):
    source = shutil.copytree(CASES / "encoder-bert", tmp_path / "models" / "bert")
    before = state_of(source)
    monkeypatch.chdir(tmp_path)
    for out, expected in (
        (source, "holds the source"),
        (source.parent, "holds the source"),
        (source / "a" / "b", "lies in the source"),
        (Path("models/../models/bert/x"), "lies in the source"),
    ):
        with pytest.raises(ValueError, match=expected) as caught:
            convert(str(source), out, overwrite=True)
        assert str(out) in str(caught.value)
    assert state_of(source) == before
    assert sorted(path.name for path in source.iterdir()) == sorted(before)


@pytest.mark.parametrize(
    ("arguments", "error", "expected"),
    [
        ({"cutoff_layers": [99]}, ValueError, "cutoff_layers"),
        ({"max_length": 100_000}, ValueError, "2048 positions"),
        ({"dtype": "float16"}, ValueError, "dtype 'float16' is not one of float32, bfloat16"),
        ({"head_index": "layer"}, TypeError, "head_index"),
        ({"model_class": "decoder-only-base"}, ValueError, "is a reranker of the kind decoder-only-layerwise"),
    ],
)
def test_arguments_that_the_reranker_would_refuse_are_refused(tmp_path, arguments, error, expected):
    with pytest.raises(error, match=expected):
        convert(str(CASES / "layerwise-minicpm"), tmp_path / "out", **arguments)
    assert os.listdir(tmp_path) == []


def test_faults_of_the_source_are_found_before_anything_is_written(tmp_path):
    source = shutil.copytree(CASES / "encoder-bert", tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor classifier\.weight is missing"):
        convert(str(source), tmp_path / "out")
    assert os.listdir(tmp_path) == ["source"]


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        convert(str(CASES / "encoder-bert"), tmp_path / "file" / "out")


# What breaks on the way


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "stop"])
@pytest.mark.parametrize("calls", [0, 3, 15])
def test_a_conversion_that_breaks_leaves_nothing(tmp_path, monkeypatch, calls, error):
    read, done = TorchCheckpoint.read, []

    def breaks(self, *args):
        done.append(args)
        if len(done) > calls:
            raise error
        return read(self, *args)

    monkeypatch.setattr(TorchCheckpoint, "read", breaks)
    with pytest.raises(type(error)) as caught:
        convert(str(CASES / "encoder-bert"), tmp_path / "out")
    if isinstance(error, OSError):
        assert str(caught.value) == f"[Errno 28] No space left on device: '{tmp_path / 'out'}'"
    assert os.listdir(tmp_path) == []


def test_an_error_of_the_source_stays_what_it_is(tmp_path, monkeypatch):
    def breaks(self, *args):
        raise CheckpointError("source", ["it is gone"])

    monkeypatch.setattr(TorchCheckpoint, "read", breaks)
    with pytest.raises(CheckpointError, match="it is gone"):
        convert(str(CASES / "encoder-bert"), tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_write_that_fails_names_its_file_and_leaves_nothing(tmp_path, monkeypatch):
    import orbax.checkpoint.experimental.v1 as ocp

    def full(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device [os_error_code='28']")

    monkeypatch.setattr(ocp.partial, "save", full)
    with pytest.raises(OSError, match=r"No space left on device.*: '.*/out/params'$"):
        convert(str(CASES / "encoder-bert"), tmp_path / "out")
    assert os.listdir(tmp_path) == []


KILLED = """
import sys, time
from pathlib import Path
from flax_rerank.conversion import convert
from flax_rerank.convert import TorchCheckpoint
read, done = TorchCheckpoint.read, []
def hangs(self, *args):
    done.append(args)
    if len(done) > 12:
        print("half", flush=True)
        time.sleep(600)
    return read(self, *args)
TorchCheckpoint.read = hangs
convert(sys.argv[1], Path(sys.argv[2]))
"""


def test_a_killed_conversion_leaves_no_checkpoint_and_the_next_one_removes_what_it_left(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(CASES / "encoder-bert"), str(out)]
    with subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"half\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.partial-")
    assert list(left.rglob("*.json"))
    assert not list(left.rglob("config.json"))
    convert(str(CASES / "encoder-bert"), out)
    assert os.listdir(tmp_path) == ["out"]
    assert verify_manifest(out) == []


# The command


def test_the_command_keeps_arguments_for_scoring(tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--cutoff-layers", "3", "5", "--prompt", "Good?", "--query-instruction", "Q: ", "--max-length", "64"]
    assert main(["convert", str(CASES / "layerwise-minicpm"), str(out), *options]) == 0
    assert "LayerWiseFlaxLLMReranker" in capsys.readouterr().out
    scoring = {"cutoff_layers": [3, 5], "prompt": "Good?", "query_instruction_for_rerank": "Q: ", "max_length": 64}
    assert json.loads((out / "config.json").read_text())["scoring"] == scoring
    pairs = load_case("layerwise-minicpm").pairs[:2]
    source = LayerWiseFlaxLLMReranker(str(CASES / "layerwise-minicpm"), devices="cpu:0", **scoring)
    assert load(out).compute_score(pairs) == source.compute_score(pairs)


def test_the_command_refuses_an_option_that_the_class_does_not_have(tmp_path, capsys):
    assert main(["convert", str(CASES / "encoder-bert"), str(tmp_path / "out"), "--prompt", "x"]) == 1
    assert "--prompt is not an option for" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_the_command_verifies_and_exits_with_1_where_a_bit_differs(tmp_path, capsys, monkeypatch):
    command = ["convert", str(CASES / "encoder-bert"), str(tmp_path / "out"), "--verify"]
    read = TorchCheckpoint.read

    def flips(self, path, *args):
        part = read(self, path, *args)
        if path == "head.dense.kernel":
            part.view(np.uint8).flat[5] ^= 1
        return part

    assert main(command) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["tensors", "41", "228,356", "0", "equal"] in rows
    monkeypatch.setattr(TorchCheckpoint, "read", flips)
    assert main([*command, "--overwrite"]) == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown
    assert "bert.pooler.dense.weight" in shown


def test_the_command_converts_back(tmp_path, capsys):
    source, flax, back = CASES / "decoder-llama", str(tmp_path / "flax"), tmp_path / "back"
    assert main(["convert", str(source), flax, "--keep-head"]) == 0
    assert main(["convert", "--to", "pytorch", flax, str(back)]) == 0
    assert f"{back}: tensors in float32" in capsys.readouterr().out
    left, right = load_file(source / "model.safetensors"), load_file(back / "model.safetensors")
    assert left.keys() == right.keys()
    assert all(tensor.tobytes() == right[name].tobytes() for name, tensor in left.items())
    assert main(["convert", "--to", "pytorch", flax, str(tmp_path / "again"), "--keep-head"]) == 1
    assert "--keep-head is not an option for --to pytorch" in capsys.readouterr().err


def test_random_checkpoints_of_published_shapes_convert(tmp_path):
    script = [sys.executable, str(ROOT / "scripts" / "make_random_checkpoint.py"), "bge-reranker-base"]
    small = ["--layers", "1", "--tokenizer", str(CASES / "encoder-xlmr"), "--shard-bytes", "1000000"]
    subprocess.run([*script, str(tmp_path / "source"), *small], check=True, capture_output=True)
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 2
    done = convert(str(tmp_path / "source"), tmp_path / "out")
    assert done.dtype == BFLOAT16
    assert done.parameters == 250002 * 768 + 514 * 768 + 768 + 2 * 768 + 7087872 + 768 * 768 + 768 + 769
