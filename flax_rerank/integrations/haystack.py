"""Haystack: a ranker."""

from dataclasses import replace
from typing import Any

from haystack import Document, component

from flax_rerank.auto import FlaxAutoReranker
from flax_rerank.rerankers import AbsReranker


@component
class FlaxRanker:
    """Orders documents by their score for a query. Pipelines with it can be written to a file and read again."""

    def __init__(self, model: str, top_k: int | None = 10, settings: dict[str, Any] | None = None) -> None:
        """A ranker, which loads its model in `warm_up`.

        Args:
            model: a folder, or a name on the Hugging Face hub.
            top_k: how many documents are kept; None for all.
            settings: arguments of `FlaxAutoReranker.from_finetuned`.
        """
        self.model = model
        self.top_k = top_k
        self.settings = settings
        self._reranker: AbsReranker | None = None

    def warm_up(self) -> None:
        """Load the model, if it is not loaded."""
        if self._reranker is None:
            self._reranker = FlaxAutoReranker.from_finetuned(self.model, **self.settings or {})

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """The best documents under "documents", best first, each with its score.

        Raises:
            ValueError: a document without text.
        """
        texts = []
        for document in documents:
            if document.content is None:
                raise ValueError(f"the document {document.id} has no text")
            texts.append(document.content)
        self.warm_up()
        assert self._reranker is not None
        ranked = self._reranker.rank(query, texts, self.top_k if top_k is None else top_k, False)
        return {"documents": [replace(documents[each["corpus_id"]], score=each["score"]) for each in ranked]}
