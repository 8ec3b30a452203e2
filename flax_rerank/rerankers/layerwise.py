"""LayerWiseFlaxLLMReranker: heads after many layers (FlagEmbedding's LayerWiseFlagLLMReranker)."""

from typing import Any

from flax_rerank.rerankers.arguments import takes_overrides, takes_settings
from flax_rerank.rerankers.base import AbsReranker, Pairs
from flax_rerank.rerankers.prepared import RerankOutput
from flax_rerank.settings import LayerwiseCall, LayerwiseSettings


class LayerWiseFlaxLLMReranker(AbsReranker):
    """Scores a pair after any of the upper layers; nothing beyond the highest one asked is computed.

    For bge-reranker-v2-minicpm-layerwise. Its arguments are those of FlagEmbedding's LayerWiseFlagLLMReranker; see
    `LayerwiseSettings`. Each score is that of its own layer and head, in the order asked.
    """

    model_class = "decoder-only-layerwise"

    @takes_settings(LayerwiseSettings)
    def __init__(self, model_name_or_path: str, **settings: Any) -> None:
        self._open(model_name_or_path, settings)

    @takes_overrides(LayerwiseCall)
    def compute_score(self, sentence_pairs: Pairs, **overrides: Any) -> list[float] | list[list[float]]:
        return self._compute_score(sentence_pairs, overrides)

    @takes_overrides(LayerwiseCall)
    def score(self, sentence_pairs: Pairs, **overrides: Any) -> RerankOutput:
        return self._score(sentence_pairs, overrides)
