"""What a user holds: one class for each kind of reranker."""

from flax_rerank.rerankers.base import AbsReranker, RerankOutput
from flax_rerank.rerankers.encoder import FlaxReranker

__all__ = ["AbsReranker", "FlaxReranker", "RerankOutput"]
