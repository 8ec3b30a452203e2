"""PyTorch checkpoints to Flax modules and back: names, layouts and files."""

from flax_rerank.convert import peft, sentence_transformers
from flax_rerank.convert.load import (
    TorchCheckpoint,
    architecture_with_head,
    architectures_of,
    family_of,
    model_class_of,
    open_checkpoint,
    read_config,
    refuse_embedding_model,
    truncation_of,
)

__all__ = [
    "TorchCheckpoint",
    "architecture_with_head",
    "architectures_of",
    "family_of",
    "model_class_of",
    "open_checkpoint",
    "peft",
    "read_config",
    "refuse_embedding_model",
    "sentence_transformers",
    "truncation_of",
]
