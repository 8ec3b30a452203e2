"""FlagEmbedding's rerankers in JAX and Flax, for TPU and GPU.

The public names are imported on first use, so that a command can handle signals before JAX is there.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "CheckpointError": "params",
    "RerankerModelClass": "settings",
    "ShardingRules": "sharding",
} | dict.fromkeys(("AUTO_RERANKER_MAPPING", "RERANKER_CLASS_MAPPING", "FlaxAutoReranker", "RerankerConfig"), "auto")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'rerankers')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
