"""Small checkpoints, FlagEmbedding's scores with them, and how near to these a score must be."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flax_rerank.convert import TorchCheckpoint
from flax_rerank.dtypes import FLOAT32
from flax_rerank.spec import open_spec

CASES = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """A small checkpoint, and how FlagEmbedding scores pairs with it.

    Attributes:
        runs: each has the arguments of the constructor (`init`) and of the call, the `scores` of all pairs in float32,
            that of a `single` pair, the `input_ids`, and in some cases `exact`, the scores in float64.
    """

    folder: Path
    reranker: str
    pairs: list[list[str]]
    runs: list[dict[str, Any]]

    def pairs_of(self, run: int) -> list[list[str]]:
        """The pairs of a run."""
        return self.runs[run].get("pairs", self.pairs)

    def error(self, run: int, scores: Any, pairs: Any = slice(None)) -> float:
        """The largest difference between the scores of some of the pairs and `exact`, or FlagEmbedding's scores in
        cases without `exact`."""
        expected = self.runs[run]
        return largest_difference(scores, np.asarray(expected.get("exact", expected["scores"]))[..., pairs])

    def allowed_error(self, run: int) -> float:
        """1e-4, or 1e-5 for sigmoids; FlagEmbedding's largest error in this case, if that is larger."""
        theirs = [largest_difference(run["scores"], run["exact"]) for run in self.runs if "exact" in run]
        return max([1e-5 if self.runs[run]["call"].get("normalize") else 1e-4, *theirs])


@cache
def load_case(name: str) -> Case:
    expected = json.loads((CASES / name / "expected.json").read_text(encoding="utf-8"))
    return Case(CASES / name, expected["reranker"], expected["pairs"], expected["runs"])


def runs_of(*names: str) -> list[Any]:
    """Every run of the named cases, as parameters (case name, run number)."""
    return [pytest.param(name, i, id=f"{name}-{i}") for name in names for i in range(len(load_case(name).runs))]


def largest_difference(left: Any, right: Any) -> float:
    return float(np.abs(np.asarray(left, np.float64) - np.asarray(right, np.float64)).max())


def open_torch(folder: Path, **settings: Any) -> TorchCheckpoint:
    """The PyTorch checkpoint in a folder, matched with its module."""
    spec = open_spec(str(folder), **settings)
    return spec.weights(spec.module(FLOAT32))
