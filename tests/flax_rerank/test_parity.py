"""Every run of every reference case: FlagEmbedding's token ids, and its scores within the error that a case allows."""

import numpy as np
import pytest
from reference_cases import load_case, runs_of

from flax_rerank.batching import Shape

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

# One shape for all runs of a case: compiling is what takes time.
TABLE = (Shape(4, 640),)


def scores_of(model, prepared):
    scores = model.run(prepared).scores
    return np.squeeze([scores[layer] for layer in prepared.call.layers]) if isinstance(scores, dict) else scores


@pytest.mark.parametrize(("name", "run"), runs_of(*CASES))
def test_token_ids_equal_the_reference_and_scores_are_as_near_to_the_exact_ones(reranker, name, run):
    case = load_case(name)
    expected = case.runs[run]
    model = reranker(name, expected["init"])
    prepared = model.prepare(case.pairs, table=TABLE, **expected["call"])
    assert [prepared.pairs.ids(i).tolist() for i in range(len(prepared))] == expected["input_ids"]
    assert prepared.tokens.tolist() == [len(ids) for ids in expected["input_ids"]]
    assert case.error(run, scores_of(model, prepared)) <= case.allowed_error(run)


@pytest.mark.parametrize("name", CASES)
def test_scores_do_not_depend_on_the_batch(reranker, name):
    """Some pairs of the last run of each case, which has the most arguments, each alone."""
    case = load_case(name)
    run = len(case.runs) - 1
    model = reranker(name, case.runs[run]["init"])
    prepared = model.prepare(case.pairs[:5], table=(Shape(1, 640),), **case.runs[run]["call"])
    assert case.error(run, scores_of(model, prepared), slice(5)) <= case.allowed_error(run)
