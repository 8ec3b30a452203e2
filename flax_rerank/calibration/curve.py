"""The probability that a passage is relevant, as a function of its score."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from flax_rerank.field_types import check_field_types

Method = Literal["platt", "isotonic"]
METHODS: tuple[Method, ...] = ("platt", "isotonic")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A rising curve from scores to probabilities.

    Attributes:
        method: platt is sigmoid(slope * score + intercept) (Platt 1999); isotonic goes straight from each point to the
            next, and is level outside of them.
        slope, intercept: of platt.
        scores: of isotonic, those of the points, ascending.
        probabilities: of isotonic, those of the points, ascending.
        layer: the cutoff layer whose scores it is for, for rerankers that have such layers.
    """

    method: Method
    slope: float = 1.0
    intercept: float = 0.0
    scores: Sequence[float] = ()
    probabilities: Sequence[float] = ()
    layer: int | None = None

    def __post_init__(self) -> None:
        check_field_types(self)
        if self.method == "platt" and not self.slope > 0:
            raise ValueError(f"slope is {self.slope}; it must be above 0")
        if self.method == "isotonic":
            if len(self.scores) != len(self.probabilities) or len(self.scores) < 2:
                raise ValueError("scores and probabilities must be as many of each, at least 2")
            if not all(low < high for low, high in pairwise(self.scores)):
                raise ValueError("scores must ascend")
            ends = (0.0, *self.probabilities, 1.0)
            if not all(low <= high for low, high in pairwise(ends)):
                raise ValueError("probabilities must ascend, from 0 to 1")

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """The probabilities of scores, float64; NaN stays NaN."""
        if self.method == "platt":
            return sigmoid(self.slope * scores + self.intercept)
        return np.interp(scores, self.scores, self.probabilities)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow. In float64, large scores keep their order."""
    return np.exp(-np.logaddexp(0.0, -logits))
