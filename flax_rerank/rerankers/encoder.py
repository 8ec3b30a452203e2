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
        """Score pairs of query and passage.

        Args:
            sentence_pairs: one pair of strings, or a sequence of pairs.
            overrides: settings for this call, in place of the constructor's.

        Returns:
            One float per pair, in order; logits, or their sigmoids with `normalize`. Always a list.

        Raises:
            TypeError: a pair that is not two strings, named by its index; an argument that does not exist.
            ValueError: `max_length` above the model's positions; a pair that cannot be encoded or has no room for its
                passage, named by its index.
            FloatingPointError: a score is not finite.
        """
        return self._compute_score(sentence_pairs, overrides)

    @takes_overrides(CallSettings)
    def score(self, sentence_pairs: Pairs, **overrides: Any) -> RerankOutput:
        """As `compute_score`, with numpy scores, tokens and truncation of each pair, and counts."""
        return self._score(sentence_pairs, overrides)
