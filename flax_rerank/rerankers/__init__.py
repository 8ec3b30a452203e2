"""What a user holds: one class for each kind of reranker."""

from flax_rerank.rerankers.base import AbsReranker
from flax_rerank.rerankers.encoder import FlaxReranker
from flax_rerank.rerankers.layerwise import LayerWiseFlaxLLMReranker
from flax_rerank.rerankers.lightweight import LightWeightFlaxLLMReranker
from flax_rerank.rerankers.listwise import FlaxListwiseReranker
from flax_rerank.rerankers.llm import FlaxLLMReranker
from flax_rerank.rerankers.prepared import Prepared, RerankOutput

__all__ = [
    "AbsReranker",
    "FlaxLLMReranker",
    "FlaxListwiseReranker",
    "FlaxReranker",
    "LayerWiseFlaxLLMReranker",
    "LightWeightFlaxLLMReranker",
    "Prepared",
    "RerankOutput",
]
