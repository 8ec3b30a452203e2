"""Hard negatives and teacher scores for training data."""

from flax_rerank.training.mining.mine import Mined, mine
from flax_rerank.training.mining.settings import MiningSettings

__all__ = ["Mined", "MiningSettings", "mine"]
