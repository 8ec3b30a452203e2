"""Small checkpoints and what FlagEmbedding made of them."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CASES = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """A small checkpoint and what FlagEmbedding made of it: `runs` hold init, call, scores, single, input_ids."""

    folder: Path
    reranker: str
    pairs: list[list[str]]
    runs: list[dict[str, Any]]


@cache
def load_case(name: str) -> Case:
    expected = json.loads((CASES / name / "expected.json").read_text(encoding="utf-8"))
    return Case(CASES / name, expected["reranker"], expected["pairs"], expected["runs"])


def runs_of(*names: str) -> list[Any]:
    """Every run of the named cases, as parameters (case name, run number)."""
    return [pytest.param(name, i, id=f"{name}-{i}") for name in names for i in range(len(load_case(name).runs))]


def largest_difference(left: Any, right: Any) -> float:
    return float(np.abs(np.asarray(left, np.float64) - np.asarray(right, np.float64)).max())
