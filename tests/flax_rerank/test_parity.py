"""Every run of every reference case: FlagEmbedding's token ids, and its scores within the error that a case allows."""

import json
import lzma
import shutil

import numpy as np
import pytest
from reference_cases import CASES as CASES_FOLDER
from reference_cases import largest_difference, load_case, runs_of

from flax_rerank import FlaxAutoReranker
from flax_rerank.batching import Shape
from flax_rerank.calibration.curve import sigmoid

pytestmark = pytest.mark.optimized
CASES = (
    "encoder-bert",
    "encoder-xlmr",
    "decoder-gemma",
    "decoder-gemma2",
    "decoder-llama",
    "decoder-llama-linear-rope",
    "decoder-llama3-rope",
    "decoder-mistral",
    "decoder-mistral-window",
    "decoder-qwen2",
    "decoder-qwen3",
    "layerwise-complex-multi",
    "layerwise-dynamic",
    "layerwise-minicpm",
    "layerwise-raw-single",
    "lightweight-gemma2",
    "lightweight-sep",
    "lora-gemma",
    "lora-llama",
)
# Rerankers that FlagEmbedding does not have; by their publishers' code.
PUBLISHED = (
    "logit-qwen3-reranker",
    "logit-mxbai-v2",
    "logit-zerank",
    "logit-ctxl",
    "logit-ctxl-mistral",
    "logit-st-module",
    "logit-st-module-single",
    "seqcls-llama",
    "seqcls-llama-bidirectional",
    "seqcls-qwen3",
    "seqcls-st-message",
    "monot5",
)
# One case for each kind of mask, positions and head; other tests score pairs of the others in steps of other shapes.
ALONE = (
    *("encoder-bert", "encoder-xlmr", "decoder-gemma2", "decoder-llama", "decoder-mistral-window", "decoder-qwen2"),
    *("layerwise-dynamic", "layerwise-minicpm", "lightweight-gemma2", "logit-qwen3-reranker"),
    *("seqcls-llama-bidirectional", "monot5"),
)


def table_of(rows, model, pairs, call):
    """One shape for all runs of a case, since compiling is what takes time, in which compression is tight."""
    prepared = model.prepare(pairs, **call)
    return (Shape(rows, 640, int(prepared.call.around(prepared.pairs).max())),)


def scores_of(model, prepared):
    scores = model.run(prepared).scores
    return np.squeeze([scores[layer] for layer in prepared.call.layers]) if isinstance(scores, dict) else scores


@pytest.mark.parametrize(("name", "run"), runs_of(*CASES, *PUBLISHED))
def test_token_ids_equal_the_reference_and_scores_are_as_near_to_the_exact_ones(reranker, name, run):
    case = load_case(name)
    expected = case.runs[run]
    model = reranker(name, expected["init"])
    pairs = case.pairs_of(run)
    table = table_of(4, model, pairs, expected["call"])
    prepared = model.prepare(pairs, table=table, **expected["call"])
    assert [prepared.pairs.ids(i).tolist() for i in range(len(prepared))] == expected["input_ids"]
    assert prepared.tokens.tolist() == [len(ids) for ids in expected["input_ids"]]
    # Longer pairs would take another shape; some runs have a few.
    short = [i for i, ids in enumerate(expected["input_ids"]) if len(ids) <= table[0].length]
    if len(short) < len(prepared):
        prepared = model.prepare([pairs[i] for i in short], table=table, **expected["call"])
    scores = scores_of(model, prepared)
    assert case.error(run, scores, short) <= case.allowed_error(run)
    if "normalized" in expected:
        style = model.spec.prompt_format
        normalized = sigmoid((scores - style.normal_shift) * style.normal_scale)
        np.testing.assert_allclose(normalized, np.asarray(expected["normalized"])[short], atol=1e-5)


@pytest.mark.parametrize("name", ALONE)
def test_scores_do_not_depend_on_the_batch(reranker, name):
    """Some pairs of the last run of each case, which has the most arguments, each alone."""
    case = load_case(name)
    run = len(case.runs) - 1
    model, call, pairs = reranker(name, case.runs[run]["init"]), case.runs[run]["call"], case.pairs_of(run)
    prepared = model.prepare(pairs[:5], table=table_of(1, model, pairs, call), **call)
    assert case.error(run, scores_of(model, prepared), slice(5)) <= case.allowed_error(run)


def test_a_reranker_with_the_real_vocabulary_equals_the_reference(tmp_path):
    """Qwen3's own tokenizer of 151,669 tokens under a small model in bfloat16."""
    source = CASES_FOLDER.parent / "data" / "qwen3-vocabulary"
    case = json.loads((source / "expected.json").read_text("utf-8"))
    folder = shutil.copytree(source, tmp_path / "Qwen3-Reranker-0.6B")
    with lzma.open(folder / "tokenizer.json.xz") as packed:
        (folder / "tokenizer.json").write_bytes(packed.read())
    model = FlaxAutoReranker.from_finetuned(folder, devices="cpu:0", **case["runs"][0]["init"])
    assert model.spec.readout.tokens == (9693, 2152)
    template = model.spec.template(model.settings)
    assert (len(template.prefix), len(template.suffix)) == (39, 9)
    for expected in case["runs"]:
        prepared = model.prepare(case["pairs"], table=(Shape(14, 120),), max_length=expected["init"]["max_length"])
        assert [prepared.pairs.ids(i).tolist() for i in range(len(prepared))] == expected["input_ids"]
    assert largest_difference(model.run(prepared).scores, expected["scores"]) <= 1e-4
