"""PyTorch checkpoints to Flax modules and back: names, layouts and files."""

from flax_rerank.convert.load import load_model, model_class_of, read_config, refuse_embedding_model
from flax_rerank.convert.rules import CheckpointError

__all__ = ["CheckpointError", "load_model", "model_class_of", "read_config", "refuse_embedding_model"]
