"""Is one ranking better than another? Confidence intervals and a paired test over the queries."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flax_rerank.evaluation.measures import Evaluation

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """A measure of two rankings of the same queries.

    Attributes:
        difference: the mean of the first ranking's values less the second's.
        interval: that of the difference, see `confidence_interval`.
        p_value: how probable so large a difference is if the rankings are equally good: Student's paired t-test, two
            sides. None for a single query.
        better: how many queries the first ranking has the greater value for.
        worse: how many it has the smaller value for.
        equal: for how many the values are equal.
    """

    difference: float
    interval: tuple[float, float] | None
    p_value: float | None
    better: int
    worse: int
    equal: int


def compare(first: Evaluation, second: Evaluation, measure: str) -> Comparison:
    """Compare two rankings by one measure. Raises ValueError if they were not measured on the same queries."""
    ours, theirs = first.per_query[measure], second.per_query[measure]
    if ours.keys() != theirs.keys():
        only = sorted(ours.keys() ^ theirs.keys())[0]
        raise ValueError(f"the rankings are not of the same queries: only one of them was measured for {only!r}")
    differences = np.asarray([ours[qid] - theirs[qid] for qid in ours])
    return Comparison(
        float(differences.mean()),
        _interval(differences),
        _p_value(differences),
        int((differences > 0).sum()),
        int((differences < 0).sum()),
        int((differences == 0).sum()),
    )


def confidence_interval(values: Mapping[str, float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of the mean over the queries, by Student's t distribution. None for one query."""
    return _interval(np.asarray([*values.values()]))


def _interval(values: np.ndarray) -> tuple[float, float] | None:
    from scipy.stats import t

    if len(values) < 2:
        return None
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * _standard_error(values)
    return float(values.mean()) - half, float(values.mean()) + half


def _p_value(differences: np.ndarray) -> float | None:
    from scipy.stats import t

    if len(differences) < 2:
        return None
    mean, error = abs(float(differences.mean())), _standard_error(differences)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * float(t.sf(mean / error, len(differences) - 1))


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))
