"""MTEB: a model for `mteb.evaluate` on reranking tasks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from mteb.models.model_meta import ModelMeta

from flax_rerank.checkpoint.manifest import describe_source
from flax_rerank.rerankers import AbsReranker

Batches = Iterable[Mapping[str, Sequence[str]]]


class MTEBCrossEncoder:
    """A reranker that follows MTEB's `CrossEncoderProtocol`.

    Attributes:
        mteb_model_meta: name and revision of the model, under which MTEB keeps the results.
    """

    def __init__(self, reranker: AbsReranker) -> None:
        self.reranker = reranker
        spec = reranker.spec
        source: dict[str, Any] = {"name": spec.name, "revision": None}
        if spec.folder is not None:
            source = describe_source(spec.name, spec.folder)
        name = source["name"] if "/" in source["name"] else f"flax-rerank/{source['name']}"
        meta = {"name": name, "revision": source["revision"], "model_type": ["cross-encoder"]}
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={key: value for key, value in meta.items() if value is not None}
        )

    def predict(self, inputs1: Batches, inputs2: Batches, **kwargs: Any) -> np.ndarray:
        """The scores of pairs, float64 [pairs].

        Args:
            inputs1: batches of queries, under "text".
            inputs2: batches of as many passages.
            kwargs: MTEB's description of the task, which changes nothing here.

        Raises:
            As `AbsReranker.compute_score`.
        """
        queries, passages = ([text for batch in batches for text in batch["text"]] for batches in (inputs1, inputs2))
        return np.asarray(self.reranker.compute_score(list(zip(queries, passages, strict=True))))
