"""Fine-tuning: data, mining, losses, optimizer, LoRA, the training step, and runs that can be stopped."""

from flax_rerank.training.mining import Mined, MiningSettings, mine
from flax_rerank.training.settings import TrainingSettings
from flax_rerank.training.trainer import TrainingResult, open_trained, train

__all__ = ["Mined", "MiningSettings", "TrainingResult", "TrainingSettings", "mine", "open_trained", "train"]
