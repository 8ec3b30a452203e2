"""LangChain's document compressor."""

import pytest

pytest.importorskip("langchain_core", reason="needs langchain-core")

from langchain_core.documents import BaseDocumentCompressor, Document

from flax_rerank.integrations.langchain import FlaxRerankCompressor


def test_the_best_documents_are_kept_with_their_scores(search):
    compressor = FlaxRerankCompressor(reranker=search.model, top_n=2)
    assert isinstance(compressor, BaseDocumentCompressor)
    documents = [Document(text, metadata={"place": place}) for place, text in enumerate(search.passages)]
    found = compressor.compress_documents(documents, search.query)
    best = search.order[:2]
    assert [each.page_content for each in found] == [search.passages[place] for place in best]
    scores = [search.scores[place] for place in best]
    assert [each.metadata["place"] for each in found] == best
    assert [each.metadata["relevance_score"] for each in found] == pytest.approx(scores, abs=1e-6)
    assert documents[0].metadata == {"place": 0}
    assert compressor.compress_documents([], search.query) == []
    with pytest.raises(ValueError, match="top_n"):
        FlaxRerankCompressor(reranker=search.model, top_n=0)
