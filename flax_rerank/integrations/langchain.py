"""LangChain: a document compressor."""

from collections.abc import Sequence
from typing import Any

from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ConfigDict, Field

from flax_rerank.rerankers import AbsReranker


class FlaxRerankCompressor(BaseDocumentCompressor):
    """Keeps the documents with the best scores, as a ContextualCompressionRetriever's `base_compressor`.

    Attributes:
        reranker: what scores.
        top_n: how many documents are kept; None for all.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    reranker: AbsReranker
    top_n: int | None = Field(default=3, ge=1)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Any | None = None
    ) -> list[Document]:
        """The best documents, best first, each with its score as `relevance_score` among its metadata."""
        ranked = self.reranker.rank(query, [document.page_content for document in documents], self.top_n, False)
        return [
            documents[each["corpus_id"]].model_copy(
                update={
                    "metadata": documents[each["corpus_id"]].metadata | {"relevance_score": each["score"]},
                }
            )
            for each in ranked
        ]
