"""The reliability diagram."""

from collections.abc import Mapping
from pathlib import Path

from flax_rerank.calibration.fit import Reliability


def plot_reliability(found: Mapping[str, Reliability], title: str, path: Path) -> None:
    """Draw the relevant share over the probability, and under it how many pairs each bin has.

    Args:
        found: what was measured, by its name.
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
    figure = Figure(figsize=(5, 6), layout="constrained")
    figure.suptitle(title)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color="tab:gray", linewidth=0.8)
    for name, each in found.items():
        upper.plot(each.probabilities, each.relevant, "o-", label=f"{name}: error {each.error:.3f}")
        lower.plot(each.probabilities, each.pairs, "o-")
    upper.set(ylabel="relevant share", xlim=(0, 1), ylim=(0, 1))
    lower.set(xlabel="probability", ylabel="pairs", yscale="log")
    upper.legend()
    figure.savefig(path)
