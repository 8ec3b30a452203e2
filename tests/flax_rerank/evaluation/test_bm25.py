"""BM25: terms, scores and order."""

import math

import pytest

from flax_rerank.evaluation.bm25 import BM25, terms


def test_terms_are_words_and_pairs_of_characters_where_nothing_separates_words():
    assert terms("The Café's 2nd B-tree") == ["the", "café", "s", "2nd", "b", "tree"]
    assert terms("東京都に JAX 行") == ["東京", "京都", "都に", "jax", "行"]
    assert terms("हिन्दी में। e\u0301te") == ["हिन्दी", "में", "e\u0301te"]
    assert terms("... !") == []


def test_scores_are_lucenes():
    index = BM25({"a": "cat cat dog", "b": "cat", "c": "fish and dog"})
    found = index.scores_of(index.scores("Cat unknown"), ["b", "a", "c"])

    def score(frequency, length):  # idf times saturated frequency; 7/3 is the mean length
        return (
            math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
            * frequency
            / (frequency + 1.2 * (1 - 0.75 + 0.75 * length / (7 / 3)))
        )

    assert found == pytest.approx({"b": score(1, 1), "a": score(2, 3), "c": 0}, rel=1e-6)


def test_the_best_come_first_and_equal_ones_in_the_order_of_the_corpus():
    index = BM25({"c": "dog", "a": "cat", "d": "cat cat", "b": "cat", "e": "cat"})
    assert list(index.best(index.scores("cat"), 10)) == ["d", "a", "b", "e"]
    assert list(index.best(index.scores("cat"), 3)) == ["d", "a", "b"]
    assert index.best(index.scores("bird"), 3) == {}


def test_passages_without_words_are_refused():
    with pytest.raises(ValueError, match="no passage has a word"):
        BM25({"a": "..."})
