"""FlaxLLMReranker: the logit of a token of a causal language model (FlagEmbedding's FlagLLMReranker)."""

from typing import Any

from flax_rerank.rerankers.arguments import takes_overrides, takes_settings
from flax_rerank.rerankers.base import AbsReranker, Pairs
from flax_rerank.rerankers.prepared import RerankOutput
from flax_rerank.settings import LLMCall, LLMSettings


class FlaxLLMReranker(AbsReranker):
    """Scores a pair by the logit of `Yes` after the prompt: bge-reranker-v2-gemma and other language models.

    Of the model's head only the row of `Yes` is read and multiplied. Its arguments are those of FlagEmbedding's
    FlagLLMReranker; see `LLMSettings`.
    """

    model_class = "decoder-only-base"

    @takes_settings(LLMSettings)
    def __init__(self, model_name_or_path: str, **settings: Any) -> None:
        self._open(model_name_or_path, settings)

    @takes_overrides(LLMCall)
    def compute_score(self, sentence_pairs: Pairs, **overrides: Any) -> list[float]:
        return self._compute_score(sentence_pairs, overrides)

    @takes_overrides(LLMCall)
    def score(self, sentence_pairs: Pairs, **overrides: Any) -> RerankOutput:
        return self._score(sentence_pairs, overrides)
