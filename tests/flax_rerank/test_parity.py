"""Every run of every reference case: FlagEmbedding's token ids, and its scores within the error that a case allows."""

import numpy as np
import pytest
from reference_cases import load_case, runs_of

from flax_rerank.pairs import as_pairs, tokenize

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


@pytest.mark.parametrize(("name", "run"), runs_of(*CASES))
def test_token_ids_equal_the_reference(reranker, name, run):
    case = load_case(name)
    expected = case.runs[run]
    model = reranker(name, expected["init"])
    call = expected["call"]
    lengths = model._lengths(call.get("query_max_length"), call.get("max_length"))
    prompt = {"prompt": call["prompt"]} if "prompt" in call else {}
    pairs = tokenize(
        as_pairs(case.pairs),
        model.tokenizer,
        model._template(lengths, **prompt),
        query_instruction=model.query_instruction,
        passage_instruction=model.passage_instruction,
    )
    assert [pairs.ids(i).tolist() for i in range(len(pairs))] == expected["input_ids"]
    np.testing.assert_array_equal(pairs.lengths, [len(ids) for ids in expected["input_ids"]])


@pytest.mark.parametrize(("name", "run"), runs_of(*CASES))
def test_scores_are_as_near_to_the_exact_ones_as_the_reference(reranker, name, run):
    case = load_case(name)
    expected = case.runs[run]
    scores = reranker(name, expected["init"]).compute_score(case.pairs, **expected["call"])
    assert case.error(run, scores) <= case.allowed_error(run)


@pytest.mark.parametrize("name", CASES)
def test_scores_do_not_depend_on_the_batch(reranker, name):
    """Some pairs of the last run of each case, which has the most arguments: in small batches, and one alone."""
    case = load_case(name)
    run = len(case.runs) - 1
    model, call = reranker(name, case.runs[run]["init"]), case.runs[run]["call"]
    scores = model.compute_score(case.pairs[:5], **call | {"batch_size": 1})
    assert case.error(run, scores, slice(5)) <= case.allowed_error(run)
    alone = model.compute_score(case.pairs[1], **call)
    assert case.error(run, alone, [1]) <= case.allowed_error(run)
