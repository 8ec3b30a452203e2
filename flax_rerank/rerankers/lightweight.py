"""LightWeightFlaxLLMReranker: early exit and token compression (FlagEmbedding's LightWeightFlagLLMReranker)."""

from typing import Any

from flax_rerank.rerankers.arguments import takes_overrides, takes_settings
from flax_rerank.rerankers.base import AbsReranker, Pairs
from flax_rerank.rerankers.prepared import RerankOutput
from flax_rerank.settings import LightweightCall, LightweightSettings


class LightWeightFlaxLLMReranker(AbsReranker):
    """Scores a pair after any of the upper layers, and on the way there averages passage tokens in groups.

    For bge-reranker-v2.5-gemma2-lightweight. Its arguments are those of FlagEmbedding's LightWeightFlagLLMReranker;
    see `LightweightSettings`. By default it keeps two habits of FlagEmbedding, since the published scores come from
    them: the lowest layer asked is scored with the first head, the next one with the second, and so on
    (`head_index`); and attention has no softcap (`attention_softcap`).
    """

    model_class = "decoder-only-lightweight"

    @takes_settings(LightweightSettings)
    def __init__(self, model_name_or_path: str, **settings: Any) -> None:
        self._open(model_name_or_path, settings)

    @takes_overrides(LightweightCall)
    def compute_score(self, sentence_pairs: Pairs, **overrides: Any) -> list[float] | list[list[float]]:
        return self._compute_score(sentence_pairs, overrides)

    @takes_overrides(LightweightCall)
    def score(self, sentence_pairs: Pairs, **overrides: Any) -> RerankOutput:
        return self._score(sentence_pairs, overrides)
