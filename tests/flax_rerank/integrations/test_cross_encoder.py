"""The class of the shape of sentence-transformers' CrossEncoder."""

import numpy as np
import pytest
from reference_cases import load_case

from flax_rerank.integrations.cross_encoder import CrossEncoder


def test_scores_are_sigmoids_where_the_checkpoint_names_no_activation(search):
    model = CrossEncoder(search.folder, max_length=64, device="cpu:0")
    pairs = [(search.query, passage) for passage in search.passages]
    expected = 1 / (1 + np.exp(-np.array(search.scores)))
    found = model.predict(pairs, batch_size=2, show_progress_bar=False)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    one = model.predict(pairs[1])
    assert one.shape == ()
    assert one == pytest.approx(expected[1], abs=1e-6)
    assert model.predict([]).shape == (0,)
    ranked = model.rank(search.query, search.passages, top_k=2)
    assert [each["corpus_id"] for each in ranked] == search.order[:2]
    assert all("text" not in each for each in ranked)


def test_the_checkpoint_and_the_caller_choose_the_activation(search):
    case = load_case("encoder-ettin")  # its folder says Identity
    model = CrossEncoder(str(case.folder), device="cpu:0")
    assert model.predict(case.pairs[:2]).tolist() == pytest.approx(
        model.reranker.compute_score(case.pairs[:2], normalize=False), abs=1e-6
    )
    logits = CrossEncoder(search.folder, max_length=64, device="cpu:0", normalize=False)
    assert logits.predict([(search.query, search.passages[0])])[0] == pytest.approx(search.scores[0], abs=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch
@pytest.mark.parametrize("name", ["encoder-bert", "encoder-ettin"])  # without its files and with them
def test_scores_and_order_are_sentence_transformers(name):
    theirs = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    case = load_case(name)
    expected = theirs.CrossEncoder(str(case.folder), device="cpu", max_length=64)
    model = CrossEncoder(str(case.folder), device="cpu:0", max_length=64)
    np.testing.assert_allclose(model.predict(case.pairs), expected.predict(case.pairs), atol=1e-5)
    query, passages = case.pairs[0][0], [passage for _, passage in case.pairs[:6]]
    ours, ranked = model.rank(query, passages), expected.rank(query, passages)
    assert [each["corpus_id"] for each in ours] == [each["corpus_id"] for each in ranked]
