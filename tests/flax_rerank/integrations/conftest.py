"""A small reranker and passages for it."""

from types import SimpleNamespace

import pytest
from reference_cases import CASES


@pytest.fixture
def search(reranker):
    """A reranker with its folder, a query, passages, and their scores and order."""
    model = reranker("encoder-bert", {"max_length": 64})
    query, passages = "what is panda?", ["hi", "The giant panda is a bear species.", "a bear", "cats purr"]
    scores = model.compute_score([(query, passage) for passage in passages])
    order = sorted(range(len(passages)), key=lambda place: -scores[place])
    folder = str(CASES / "encoder-bert")
    return SimpleNamespace(model=model, folder=folder, query=query, passages=passages, scores=scores, order=order)
