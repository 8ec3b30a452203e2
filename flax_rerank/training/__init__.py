"""Fine-tuning: data, losses, optimizer, LoRA, the training step, and runs that can be stopped."""

from flax_rerank.training.settings import TrainingSettings
from flax_rerank.training.trainer import TrainingResult, open_trained, train

__all__ = ["TrainingResult", "TrainingSettings", "open_trained", "train"]
