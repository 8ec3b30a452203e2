"""Pairs a second over meshes and lengths."""

from collections.abc import Mapping
from pathlib import Path

from flax_rerank.planning.plan import Plan


def plot_speeds(plans: Mapping[int, Plan], path: Path) -> None:
    """Draw the upper bound of each mesh on pairs a second over the length of the pairs.

    Args:
        plans: for each length, the plan of a job with pairs of this length.
        path: the picture, .png, .svg or .pdf.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the model fits no mesh, or the suffix of `path` is not that of a picture.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install 'flax-rerank[plot]'") from error
    speeds: dict[str, dict[int, float]] = {}
    for length, plan in plans.items():
        for each in (plan.best, *plan.others):
            if each is not None and each.steps:
                speeds.setdefault(each.mesh, {})[length] = each.pairs_per_second
    if not speeds:
        raise ValueError("nothing to draw: the model fits no mesh")
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    first = next(iter(plans.values()))
    title = f"{first.model} on {first.topology.name}"
    axes = figure.subplots()
    axes.set(title=title, xlabel="tokens of a pair", ylabel="pairs/s at most", yscale="log")
    for mesh, points in speeds.items():
        axes.plot(list(points), list(points.values()), marker="o", label=mesh)
    axes.legend()
    figure.savefig(path)
