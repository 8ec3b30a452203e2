"""Quality against cost: one reranker with many settings on one test set."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from flax_rerank.auto import FlaxAutoReranker
from flax_rerank.evaluation.data import EvaluationSet
from flax_rerank.evaluation.measures import MEASURES, measure, parse_measures
from flax_rerank.evaluation.systems import prepare, runs_of
from flax_rerank.operations import count_work, sizes_of
from flax_rerank.rerankers import AbsReranker, Prepared

# What can be varied. A dtype needs the model to be loaded again; the others may differ from call to call.
DTYPE = "dtype"
SWEPT: Mapping[str, type] = {
    "max_length": int,
    "query_max_length": int,
    "cutoff_layers": int,
    "compress_ratio": int,
    DTYPE: str,
}


@dataclass(frozen=True)
class SweepPoint:
    """A reranker with certain settings.

    Attributes:
        settings: those that are varied.
        mean: each measure's mean over the queries.
        operations: of a pair on average, multiplications and additions, padding included.
        pairs_per_second: measured, from texts to scores, without the time to compile.
    """

    settings: Mapping[str, Any]
    mean: Mapping[str, float]
    operations: float
    pairs_per_second: float


def sweep(
    model: str,
    data: EvaluationSet,
    grid: Mapping[str, Sequence[Any]],
    measures: Sequence[str] = MEASURES,
    *,
    show_progress_bar: bool = False,
    **settings: Any,
) -> Iterator[SweepPoint]:
    """Evaluate a reranker with all combinations of some settings.

    Args:
        model: a folder (PyTorch or Flax), or a name on the hub.
        data: the test set.
        grid: the values of each setting that is varied, names of `SWEPT`.
        measures: as for `measure`.
        show_progress_bar: show one for each combination.
        settings: arguments of `FlaxAutoReranker.from_finetuned`.

    Raises:
        ValueError: a setting that cannot be varied, or that is given besides; and as `evaluate`.
    """
    parse_measures(measures)
    for name, values in grid.items():
        if name not in SWEPT or name in settings or not values:
            raise ValueError(f"{name} cannot be varied: give values for some of {', '.join(SWEPT)}, and only there")
    calls = {name: values for name, values in grid.items() if name != DTYPE}
    for dtype in grid.get(DTYPE, [settings.get(DTYPE)]):
        first = {name: values[0] for name, values in calls.items()}
        reranker = FlaxAutoReranker.from_finetuned(model, **settings | first | {DTYPE: dtype})
        varied = {DTYPE: dtype} if DTYPE in grid else {}
        for values in product(*calls.values()):
            overrides = dict(zip(calls, values, strict=True))
            yield _point(reranker, data, measures, varied, overrides, show_progress_bar)


def label(settings: Mapping[str, Any]) -> str:
    """Settings as they are given on the command line."""
    return " ".join(f"{name}={value}" for name, value in settings.items())


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that no other one beats in both numbers, by index: greater is better. The first number descends."""
    chosen: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: points[index], reverse=True):
        if not chosen or points[index][1] > points[chosen[-1]][1]:
            chosen.append(index)
    return chosen


def _point(
    reranker: AbsReranker,
    data: EvaluationSet,
    measures: Sequence[str],
    varied: Mapping[str, Any],
    overrides: Mapping[str, Any],
    show_progress_bar: bool,
) -> SweepPoint:
    start = time.perf_counter()
    prepared = prepare(reranker, data, show_progress_bar=show_progress_bar, **overrides)
    prepared_at = time.perf_counter()
    reranker.warmup(replace(prepared, table=tuple({step.shape for step in prepared.steps})))  # no more than is needed
    warm_at = time.perf_counter()
    output = reranker.run(prepared, show_progress_bar=show_progress_bar)
    seconds = time.perf_counter() - warm_at + prepared_at - start
    (run,) = runs_of(output, data).values()
    found = measure(run, data.qrels, measures)
    operations = operations_of(reranker, prepared) / len(prepared)
    return SweepPoint({**varied, **overrides}, found.mean, operations, len(prepared) / seconds)


def operations_of(reranker: AbsReranker, prepared: Prepared) -> float:
    """The operations of all steps: multiplications and additions, padding included."""
    sizes = sizes_of(reranker.spec.config, prepared.call.readout)
    total = 0
    for step in prepared.steps:
        readout, compression = prepared.call.static(step.shape)
        compressed = compression.at if compression else ()
        total += step.shape.rows * count_work(sizes, step.shape.length, readout.layers[-1], compressed).operations
    return total
