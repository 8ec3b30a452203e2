"""Quality over cost."""

from collections.abc import Sequence
from pathlib import Path

from flax_rerank.evaluation.sweep import SweepPoint, front, label


def plot_sweep(points: Sequence[SweepPoint], measure: str, title: str, path: Path) -> None:
    """Draw a measure over operations and over speed, with a line through the settings that no other one beats.

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
    figure = Figure(figsize=(10, 5), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, sharey=True)
    left.set(xlabel="GFLOP a pair", ylabel=measure, xscale="log")
    right.set(xlabel="pairs/s", xscale="log")
    quality = [point.mean[measure] for point in points]
    operations = [point.operations / 1e9 for point in points]
    speed = [point.pairs_per_second for point in points]
    cheap = front([(-cost, value) for cost, value in zip(operations, quality, strict=True)])
    fast = front([*zip(speed, quality, strict=True)])
    for axes, costs, best in ((left, operations, cheap), (right, speed, fast)):
        axes.plot([costs[index] for index in best], [quality[index] for index in best], color="tab:gray")
        for number, index in enumerate(sorted({*cheap, *fast})):
            shown = label(points[index].settings) if axes is left else None
            axes.plot(costs[index], quality[index], "o", color=f"C{number}", label=shown)
        rest = set(range(len(points))) - {*cheap, *fast}
        axes.plot([costs[index] for index in rest], [quality[index] for index in rest], ".", color="tab:gray")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}" if max(costs) < 10 * min(costs) else "")
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path)
