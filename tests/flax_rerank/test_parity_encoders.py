"""Encoders published for sentence-transformers and transformers: their token ids, and the exact scores."""

import numpy as np
import pytest
from reference_cases import load_case

from flax_rerank.batching import Shape

CASES = (
    "encoder-deberta-v2",
    "encoder-distilbert",
    "encoder-electra",
    "encoder-ettin",
    "encoder-gte-new",
    "encoder-gte-new-ntk",
    "encoder-jina-v1",
    "encoder-jina-v2",
    "encoder-modernbert-cls",
    "encoder-modernbert-mean",
    "encoder-roberta",
)
# One shape for all runs of a case: compiling is what takes time.
TABLE = (Shape(4, 512),)


@pytest.mark.parametrize("name", CASES)
def test_token_ids_and_scores_are_those_of_the_reference(reranker, name):
    case, model = load_case(name), reranker(name)
    for run, expected in enumerate(case.runs):
        prepared = model.prepare(case.pairs, table=TABLE, **expected["call"])
        assert [prepared.pairs.ids(i).tolist() for i in range(len(prepared))] == expected["input_ids"]
        full = [len(ids) for ids in case.runs[0]["input_ids"]]
        assert (prepared.truncated >= (prepared.tokens < full)).all()
        assert case.error(run, model.run(prepared).scores) <= case.allowed_error(run)
    alone = model.run(model.prepare(case.pairs[1], table=TABLE, **case.runs[-1]["call"]))
    assert case.error(len(case.runs) - 1, alone.scores, slice(1, 2)) <= case.allowed_error(0)


@pytest.mark.parametrize(
    "name", ["encoder-deberta-v2", "encoder-gte-new", "encoder-jina-v1", "encoder-modernbert-mean"]
)
def test_scores_do_not_depend_on_the_shape_of_a_step(reranker, name):
    case, model = load_case(name), reranker(name)
    call = case.runs[1]["call"]
    prepared = model.prepare(case.pairs, table=(Shape(1, 72),), **call)
    other = model.run(model.prepare(case.pairs, table=TABLE, **call)).scores
    np.testing.assert_allclose(model.run(prepared).scores, other, rtol=0, atol=1e-5)
