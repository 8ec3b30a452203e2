"""Verification: a checkpoint that is its source passes, and whatever is changed in it is found and named."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from reference_cases import CASES, load_case
from safetensors.numpy import load_file, save_file

from flax_rerank.conversion import convert
from flax_rerank.conversion import verify as verification
from flax_rerank.conversion.check import check_tensors, compare
from flax_rerank.conversion.verify import check_scores, verify

BERT, LLAMA = CASES / "encoder-bert", CASES / "decoder-llama"
pytestmark = pytest.mark.filterwarnings("ignore:'Yes' is")  # true of some of the small tokenizers


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A checkpoint of the BERT case; not to be changed."""
    path = tmp_path_factory.mktemp("converted") / "flax"
    convert(str(BERT), path)
    return path


@pytest.fixture
def folder(converted, tmp_path):
    """A checkpoint of the BERT case, to be changed."""
    return shutil.copytree(converted, tmp_path / "flax")


@pytest.fixture
def source(tmp_path):
    """A copy of the BERT case, to be changed."""
    return shutil.copytree(BERT, tmp_path / "source")


def change_source(folder, name, change):
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / "model.safetensors")


def test_what_was_converted_passes(converted, monkeypatch):
    monkeypatch.setattr(verification, "find_spec", lambda name: None)
    files, tensors, scores = verify(BERT, converted)
    assert (files.verdict, files.count) == ("equal", len([p for p in converted.rglob("*") if p.is_file()]) - 1)
    stored = load_file(BERT / "model.safetensors")
    assert (tensors.verdict, tensors.count, tensors.largest_difference) == ("equal", len(stored), 0.0)
    assert tensors.bytes == sum(tensor.nbytes for tensor in stored.values())
    assert (scores.verdict, scores.skipped) == ("not made", "torch is not installed")


def test_every_flipped_byte_of_the_parameters_is_found(folder):
    files = sorted(file for file in (folder / "params").rglob("*") if file.stat().st_size and file.is_file())
    assert len(files) > 4
    for file in files:
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[len(whole) // 2] ^= 1
        file.write_bytes(damaged)
        checks = verify(BERT, folder)
        assert len(checks) == 2  # nothing is scored with it
        assert any(f"{file.relative_to(folder).as_posix()} is damaged" in fault for fault in checks[0].faults)
        file.write_bytes(whole)


def test_a_flipped_bit_is_found_without_a_manifest(source, converted):
    def flip(tensor):
        tensor.view(np.uint32)[3, 5] ^= 1
        return tensor

    change_source(source, "bert.encoder.layer.1.output.dense.weight", flip)
    check = check_tensors(source, converted)
    assert 0 < check.largest_difference < 1e-6
    assert len(check.faults) == 1
    assert "tensor bert.encoder.layer.1.output.dense.weight differs" in check.faults[0]


def test_numbers_that_are_equal_but_not_their_bits_are_told_apart(source, converted):
    change_source(source, "classifier.bias", lambda tensor: np.full_like(tensor, -0.0))
    change_source(source, "bert.pooler.dense.bias", lambda tensor: np.full_like(tensor, np.nan))
    check = check_tensors(source, converted)
    assert {fault.split()[1] for fault in check.faults} == {"classifier.bias", "bert.pooler.dense.bias"}
    assert check.largest_difference == np.inf
    assert compare(np.zeros(2, np.float32), np.full(2, -0.0, np.float32)) == 0.0
    assert compare(np.full(2, np.nan, np.float32), np.full(2, np.nan, np.float32)) is None


def test_another_source_is_no_source(converted, source):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-5}))
    assert "source_config" in check_tensors(source, converted).faults[0]
    faults = check_tensors(CASES / "encoder-xlmr", converted).faults
    assert faults[-1].startswith("and ")  # too many to list


def test_the_source_is_cast_before_it_is_compared(tmp_path):
    convert(str(LLAMA), tmp_path / "flax", dtype="bfloat16", keep_head=True)
    check = check_tensors(LLAMA, tmp_path / "flax")
    assert check.faults == ()
    assert check.count == len(load_file(LLAMA / "model.safetensors")) + 1  # the row, and the head that was kept


def test_a_merged_adapter_is_compared_with_what_it_makes_of_its_base(tmp_path):
    case = CASES / "lora-gemma"
    convert(str(case), tmp_path / "flax", peft_path=str(case / "adapter"))
    assert check_tensors(case, tmp_path / "flax", case / "adapter").faults == ()
    assert "mlp.gate_proj" in " ".join(check_tensors(case, tmp_path / "flax").faults)


def test_a_kept_head_is_compared(tmp_path):
    convert(str(LLAMA), tmp_path / "flax", keep_head=True)
    kept = load_file(tmp_path / "flax" / "kept.safetensors")
    kept["lm_head.weight"][7, 3] += 1
    save_file(kept, tmp_path / "flax" / "kept.safetensors")
    check = check_tensors(LLAMA, tmp_path / "flax")
    assert "lm_head.weight in kept.safetensors differs from the source by up to 1" in check.faults[0]
    assert check.largest_difference == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("moved", "verdict"), [(0.0, "close"), (2e-2, "FAILED")])
def test_scores_may_differ_by_rounding_only(converted, monkeypatch, moved, verdict):
    # Pairs of the case, and its scores in place of PyTorch's.
    case = load_case("encoder-bert")
    run = next(run for run in case.runs if not run["init"] and not run["call"])
    chosen = (0, 1, 5)
    monkeypatch.setattr(verification, "PAIRS", tuple(tuple(case.pairs[i]) for i in chosen))
    monkeypatch.setattr(verification, "MAX_LENGTH", 512)
    asked = {}

    def torch_scorer(source, class_name, dtype, tokens, pairs):
        asked.update(source=source, class_name=class_name, dtype=dtype, tokens=tokens)
        asked["ids"] = [pairs.ids(pair).tolist() for pair in range(len(pairs))]
        return np.asarray([run["scores"][i] for i in chosen]) + moved * np.asarray([1, 0, 0])

    monkeypatch.setattr(verification, "_why_not", lambda *args: None)
    monkeypatch.setattr(verification, "score_with_transformers", torch_scorer)
    check = check_scores(BERT, converted)
    assert (check.verdict, check.count) == (verdict, 3)
    assert check.largest_difference == pytest.approx(moved, abs=5e-5)
    assert check.faults == () or (len(check.faults) == 1 and check.faults[0].startswith("pair 0 scores"))
    assert asked["ids"] == [run["input_ids"][i] for i in chosen]
    assert asked["class_name"] == "BertForSequenceClassification"
    assert (asked["source"], asked["dtype"], asked["tokens"]) == (BERT, np.float32, ())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder-bert", "BertForSequenceClassification"),
        ("decoder-llama", "LlamaForCausalLM"),
        ("layerwise-minicpm", "LayerWiseMiniCPMForCausalLM"),
    ],
)
def test_the_class_of_transformers_is_that_of_the_config(name, expected):
    config = json.loads((CASES / name / "config.json").read_text())
    assert verification.class_of_transformers(config) == expected
    del config["architectures"]
    assert verification.class_of_transformers(config) == expected


def test_bfloat16_is_compared_by_its_bits():
    left = np.arange(6, dtype=np.float32).reshape(2, 3).astype(ml_dtypes.bfloat16)
    assert compare(left, left.astype(np.float32)) is None
    assert compare(left.T, left.T.astype(np.float32)) is None
    assert compare(left, left + ml_dtypes.bfloat16(1)) == 1.0
