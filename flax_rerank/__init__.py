"""FlagEmbedding's rerankers in JAX and Flax, for TPU and GPU."""

from flax_rerank.auto import (
    AUTO_RERANKER_MAPPING,
    RERANKER_CLASS_MAPPING,
    FlaxAutoReranker,
    RerankerConfig,
)
from flax_rerank.params import CheckpointError
from flax_rerank.rerankers import (
    AbsReranker,
    FlaxListwiseReranker,
    FlaxLLMReranker,
    FlaxReranker,
    LayerWiseFlaxLLMReranker,
    LightWeightFlaxLLMReranker,
    RerankOutput,
)
from flax_rerank.settings import RerankerModelClass
from flax_rerank.sharding import ShardingRules

__all__ = [
    "AUTO_RERANKER_MAPPING",
    "RERANKER_CLASS_MAPPING",
    "AbsReranker",
    "CheckpointError",
    "FlaxAutoReranker",
    "FlaxLLMReranker",
    "FlaxListwiseReranker",
    "FlaxReranker",
    "LayerWiseFlaxLLMReranker",
    "LightWeightFlaxLLMReranker",
    "RerankOutput",
    "RerankerConfig",
    "RerankerModelClass",
    "ShardingRules",
]
__version__ = "0.1.0"
