"""From scores to probabilities: what is fitted, how good it is, and the checkpoint that keeps it."""

from flax_rerank.calibration.curve import Calibration
from flax_rerank.calibration.fit import Reliability, cross_fit, fit, reliability

__all__ = ["Calibration", "Reliability", "cross_fit", "fit", "reliability"]
