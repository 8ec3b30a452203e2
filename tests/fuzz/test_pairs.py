"""Whatever is given as pairs, or as passages to rank."""

import pytest
from fuzzing import Outcome, attempt, odd_values, texts
from hypothesis import strategies as st

from flax_rerank.text.pairs import as_pairs

pairs = st.tuples(texts, texts) | st.tuples(texts, texts).map(list)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("encoder-bert", {}), ("decoder-llama", {}), ("lightweight-sep", {"compress_ratio": 2, "compress_layers": [1]})],
)
def test_pairs(fuzz, reranker, name, settings):
    model = reranker(name, {"max_length": 96, **settings})

    def check(sentence_pairs):
        scores, refused = attempt(lambda: model.compute_score(sentence_pairs))
        if refused:
            return Outcome.REFUSED
        asked = as_pairs(sentence_pairs)
        assert len(scores) == len(asked)
        for pair, score in list(zip(asked, scores, strict=True))[:2]:
            (alone,) = model.compute_score([pair])
            assert abs(alone - score) <= 1e-4
        return Outcome.RIGHT

    fuzz(check, st.lists(pairs, max_size=5) | st.lists(pairs | odd_values, max_size=3) | odd_values, examples=6)


def test_passages(fuzz, reranker):
    model = reranker("encoder-bert", {"max_length": 96})

    def check(query, passages, top_k):
        ranked, refused = attempt(lambda: model.rank(query, passages, top_k))
        if refused:
            return Outcome.REFUSED
        scores = model.compute_score([(query, passage) for passage in passages])
        best = sorted(scores, reverse=True)[:top_k]
        assert [entry["score"] for entry in ranked] == pytest.approx(best, abs=1e-4)
        assert all(passages[entry["corpus_id"]] == entry["text"] for entry in ranked)
        return Outcome.RIGHT

    passages = st.lists(texts, max_size=5) | st.lists(texts | odd_values, max_size=3) | odd_values
    fuzz(check, texts | odd_values, passages, st.none() | st.integers(1, 4) | odd_values, examples=6)
