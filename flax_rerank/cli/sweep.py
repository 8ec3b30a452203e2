"""`flax-rerank evaluate --sweep`: quality against cost."""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flax_rerank.evaluation.data import EvaluationSet
from flax_rerank.evaluation.plot import plot_sweep
from flax_rerank.evaluation.sweep import SWEPT, front, label, sweep


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """The options of a sweep."""
    group = parser.add_argument_group("quality against cost")
    group.add_argument(
        "--sweep",
        nargs="+",
        type=_values,
        metavar="NAME=V,V",
        help=f"try all combinations of settings, as max_length=128,512 dtype=float32,bfloat16: {', '.join(SWEPT)}",
    )
    group.add_argument("--plot", type=Path, metavar="FILE", help="draw the first measure over operations and speed")


def print_sweep(args: argparse.Namespace, data: EvaluationSet, settings: Mapping[str, Any]) -> None:
    """Evaluate a reranker with all combinations, print a table or JSON, and draw the picture.

    Raises:
        As `sweep` and `plot_sweep`; and ValueError for a setting that is given twice.
    """
    grid = dict(args.sweep)
    if len(grid) < len(args.sweep):
        raise ValueError("--sweep has a setting twice: give all its values together")
    show = not args.no_progress and sys.stderr.isatty()
    options = {"model_class": args.model_class, "show_progress_bar": show}
    points = list(sweep(args.system, data, grid, args.measures, **options, **settings))
    first = args.measures[0]
    if args.plot is not None:
        plot_sweep(points, first, args.system, args.plot)
    best = front([(point.pairs_per_second, point.mean[first]) for point in points])
    if args.json:
        rows = [{**asdict(point), "best": index in best} for index, point in enumerate(points)]
        print(json.dumps({"queries": len(data.qrels), "pairs": len(data.ids()), "points": rows}, indent=2))
        return
    width = max(len(label(point.settings)) for point in points)
    print(" " * width + "".join(f"{name:>12}" for name in [*args.measures, "GFLOP/pair", "pairs/s"]))
    for index, point in enumerate(points):
        figures = "".join(f"{point.mean[name]:12.4f}" for name in args.measures)
        cost = f"{point.operations / 1e9:12.4g}{point.pairs_per_second:12.1f}"
        print(f"{label(point.settings):{width}}{figures}{cost}{'  *' if index in best else ''}")
    print(f"* no other setting is both faster and better by {first}")


def _values(text: str) -> tuple[str, list[Any]]:
    """A setting and its values."""
    name, _, values = text.partition("=")
    name = name.replace("-", "_")
    try:
        return name, [SWEPT[name](value) for value in values.split(",")]
    except (KeyError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"{text} is not a setting with its values, as max_length=128,512; settings are {', '.join(SWEPT)}"
        ) from error
