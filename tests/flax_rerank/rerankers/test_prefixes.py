"""What pairs begin with alike is computed once, and their scores are the same."""

import numpy as np
import pytest
from reference_cases import CASES, load_case

from flax_rerank import FlaxAutoReranker
from flax_rerank.rerankers import prefixes

pytestmark = pytest.mark.filterwarnings("ignore:'Yes' is 2 tokens:UserWarning")
PASSAGES = [f"{'The giant panda is a bear. ' * (number % 4)}It eats {number} bamboos." for number in range(12)]
QUERY = "what does the giant panda eat in the mountains of China, and how much of it? " * 3
ONE = [(QUERY, passage) for passage in PASSAGES]
MANY = [(f"{number} what do pandas eat?", passage) for number in range(3) for passage in PASSAGES[:6]]
ALONE = [("hi", PASSAGES[0])]


@pytest.fixture(autouse=True)
def _small_models(monkeypatch):
    """The layers of the cases are so small that nothing but their tokens is counted."""
    monkeypatch.setattr(prefixes, "TOKENS_OF_A_STEP", 0)


def both(model, pairs, **call):
    """The output with and without sharing."""
    shared, apart = model.score(pairs, **call), model.score(pairs, share_prefix=False, **call)
    assert all(shape.prefixes for shape in shared.shapes)
    assert not any(shape.prefixes for shape in apart.shapes)
    return shared, apart


def scores_of(output):
    return np.asarray(list(output.scores.values()) if isinstance(output.scores, dict) else output.scores)


@pytest.mark.parametrize(
    "name",
    [
        "decoder-gemma",
        "decoder-gemma2",
        "decoder-mistral-window",
        "logit-qwen3-reranker",
        "logit-mxbai-v2",
        "logit-zerank",
        "layerwise-minicpm",
    ],
)
def test_scores_are_those_without_sharing(reranker, name):
    """Windows, softcaps, templates of one text and of two, and several cutoff layers."""
    model = reranker(name, load_case(name).runs[0]["init"])
    call = {"cutoff_layers": [2, 4, 6]} if name == "layerwise-minicpm" else {}
    shared, apart = both(model, ONE, **call)
    np.testing.assert_allclose(scores_of(shared), scores_of(apart), rtol=0, atol=1e-5)
    assert np.ptp(scores_of(apart)) > 1e-2
    assert shared.computed_tokens < 0.9 * apart.computed_tokens


def test_queries_in_several_blocks_on_a_mesh(monkeypatch):
    monkeypatch.setattr(prefixes, "MOST_NUMBERS", 1)
    model = FlaxAutoReranker.from_finetuned(
        str(CASES / "logit-qwen3-reranker"), mesh="data=2,model=2", devices=[0, 1, 2, 3], show_progress_bar=False
    )
    shared, apart = both(model, MANY + ALONE)
    assert {shape.prefixes for shape in shared.shapes} == {2}
    np.testing.assert_allclose(shared.scores, apart.scores, rtol=0, atol=1e-5)
    assert 0 <= shared.padding_tokens < shared.computed_tokens


def test_truncation_and_tokens_are_reported_as_without_sharing(reranker):
    model = reranker("logit-qwen3-reranker", load_case("logit-qwen3-reranker").runs[0]["init"])
    shared, apart = both(model, [*ONE, (QUERY, "bear " * 600)], max_length=512)
    assert shared.truncated.tolist() == apart.truncated.tolist() == [False] * 12 + [True]
    assert shared.tokens.tolist() == apart.tokens.tolist()


def test_a_pair_alone_shares_nothing(reranker):
    assert not reranker("logit-qwen3-reranker").score(ALONE).shapes[0].prefixes


def test_a_table_says_whether_prefixes_are_shared(reranker):
    model = reranker("logit-qwen3-reranker")
    table = model.prepare(ONE).table
    again = model.prepare(ALONE, table=table)
    assert again.steps[0].shape in table
    expected = model.compute_score(ALONE)
    np.testing.assert_allclose(model.run(again).scores, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="the table is that of steps that share prefixes, which this call does not"):
        model.prepare(ALONE, table=table, share_prefix=False)


@pytest.mark.parametrize("name", ["layerwise-dynamic", "seqcls-llama-bidirectional", "lightweight-gemma2"])
def test_models_that_cannot_share_do_not(reranker, name):
    """Angles that depend on the whole input, tokens that see later ones, and compressed passages."""
    case = load_case(name)
    call = {"compress_layers": [2], "compress_ratio": 2} if name == "lightweight-gemma2" else {}
    assert reranker(name, case.runs[0]["init"]).prepare(ONE, **call).call.sizes is None
