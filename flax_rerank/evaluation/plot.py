"""Quality over cost."""

from collections.abc import Sequence
from pathlib import Path

from flax_rerank.evaluation.sweep import SweepPoint, front, label


def plot_sweep(points: Sequence[SweepPoint], measure: str, title: str, path: Path) -> None:
    """Draw a measure over operations and over speed, and through the settings that no other one beats a line.

    Args:
        points: of a sweep.
        measure: which of their measures.
        title: of the picture.
        path: the picture, .png, .svg or .pdf.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the suffix of `path` is not that of a picture.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install 'flax-rerank[plot]'") from error
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, sharey=True)
    left.set(xlabel="GFLOP a pair", ylabel=measure, xscale="log")
    right.set(xlabel="pairs/s", xscale="log")
    quality = [point.mean[measure] for point in points]
    for axes, costs, sign, side in (
        (left, [point.operations / 1e9 for point in points], -1, "left"),
        (right, [point.pairs_per_second for point in points], 1, "right"),
    ):
        axes.margins(x=0.2)
        axes.plot(costs, quality, "o", color="tab:gray")
        best = front([(sign * cost, value) for cost, value in zip(costs, quality, strict=True)])
        axes.plot([costs[index] for index in best], [quality[index] for index in best], "o-", color="tab:blue")
        for index in best:
            place = (costs[index], quality[index])
            below = {"xytext": (0, -12), "textcoords": "offset points", "ha": side, "fontsize": "x-small"}
            axes.annotate(label(points[index].settings), place, **below)
    figure.savefig(path)
