"""What a user holds: one class for each kind of reranker."""

from flax_rerank.rerankers.base import AbsReranker, RerankOutput
from flax_rerank.rerankers.encoder import FlaxReranker
from flax_rerank.rerankers.layerwise import LayerWiseFlaxLLMReranker
from flax_rerank.rerankers.lightweight import LightWeightFlaxLLMReranker
from flax_rerank.rerankers.llm import FlaxLLMReranker

__all__ = [
    "AbsReranker",
    "FlaxLLMReranker",
    "FlaxReranker",
    "LayerWiseFlaxLLMReranker",
    "LightWeightFlaxLLMReranker",
    "RerankOutput",
]
