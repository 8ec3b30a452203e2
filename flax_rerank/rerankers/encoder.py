"""FlaxReranker: encoder-only cross-encoders (FlagEmbedding's FlagReranker)."""

from typing import Any

from flax_rerank.rerankers.arguments import takes_overrides, takes_settings
from flax_rerank.rerankers.base import AbsReranker, Pairs
from flax_rerank.rerankers.prepared import RerankOutput
from flax_rerank.settings import CallSettings, EncoderSettings


class FlaxReranker(AbsReranker):
    """Scores pairs with an encoder and a classification head: bge-reranker-base, -large, -v2-m3 and others.

    Its arguments are those of FlagEmbedding's FlagReranker; see `EncoderSettings`.
    """

    model_class = "encoder-only-base"

    @takes_settings(EncoderSettings)
    def __init__(self, model_name_or_path: str, **settings: Any) -> None:
        self._open(model_name_or_path, settings)

    @takes_overrides(CallSettings)
    def compute_score(self, sentence_pairs: Pairs, **overrides: Any) -> list[float]:
        return self._compute_score(sentence_pairs, overrides)

    @takes_overrides(CallSettings)
    def score(self, sentence_pairs: Pairs, **overrides: Any) -> RerankOutput:
        return self._score(sentence_pairs, overrides)
