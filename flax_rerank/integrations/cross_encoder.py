"""For code that was written for sentence-transformers: a class of the shape of its `CrossEncoder`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flax_rerank.auto import FlaxAutoReranker
from flax_rerank.convert.sentence_transformers import is_published_for
from flax_rerank.rerankers import AbsReranker


class CrossEncoder:
    """Scores pairs with `predict` and orders passages with `rank`, as sentence-transformers' class does.

    As there, scores are sigmoids unless the checkpoint names another activation, and the longer text is cut.

    Attributes:
        reranker: what scores.
    """

    def __init__(
        self, model_name_or_path: str, *, max_length: int | None = None, device: str | None = None, **settings: Any
    ) -> None:
        """Load a reranker.

        Args:
            model_name_or_path: a folder, or a name on the Hugging Face hub.
            max_length: tokens of a pair.
            device: "cpu", "cuda:0", ...; by default all devices.
            settings: arguments of `FlaxAutoReranker.from_finetuned`. `normalize=False` gives logits.
        """
        chosen = {"max_length": max_length, "devices": device}
        settings |= {name: value for name, value in chosen.items() if value is not None}
        self.reranker: AbsReranker = FlaxAutoReranker.from_finetuned(model_name_or_path, **settings)
        self._own: dict[str, Any] = {}
        if self.reranker.model_class == "encoder-only-base" and not is_published_for(self.reranker.spec.hf):
            theirs = {"normalize": True, "truncation": "longest_first"}
            self._own = {name: value for name, value in theirs.items() if name not in settings}

    def predict(
        self,
        inputs: Sequence[Sequence[str]] | Sequence[str],
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> Any:
        """The scores of pairs, float32 [pairs]; of one pair a float32 number. Raises as `compute_score`."""
        one = len(inputs) > 0 and isinstance(inputs[0], str)
        scores = self.reranker.compute_score(inputs, **self._overrides(batch_size, show_progress_bar))
        found = np.asarray(scores, np.float32)
        return found[0] if one else found

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Documents by their score for a query, best first, as `AbsReranker.rank`."""
        overrides = self._overrides(batch_size, show_progress_bar)
        return self.reranker.rank(query, documents, top_k, return_documents, **overrides)

    def _overrides(self, batch_size: int | None, show_progress_bar: bool | None) -> dict[str, Any]:
        return {"batch_size": batch_size, "show_progress_bar": show_progress_bar, **self._own}
