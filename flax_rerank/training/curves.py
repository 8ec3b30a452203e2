"""The curves of a run: a JSON line for each step or evaluation, a picture, and what other tools are told."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Curve:
    """A file of JSON lines, one for each step, in order.

    Args:
        file: it is made, or gone on with.
        last_step: lines of later steps are removed: the run goes on from here, and writes them again.
        written: by this process; of several, one writes.
    """

    def __init__(self, file: Path, last_step: int, *, written: bool = True) -> None:
        self.points = [point for point in read(file) if point["step"] <= last_step]
        self._stream = None
        if written:
            partial = file.with_name(f".{file.name}.partial")
            partial.write_text("".join(json.dumps(point) + "\n" for point in self.points), encoding="utf-8")
            partial.replace(file)
            self._stream = file.open("a", encoding="utf-8")

    def add(self, point: Mapping[str, Any]) -> None:
        """Write a line."""
        self.points.append(dict(point))
        if self._stream is not None:
            self._stream.write(json.dumps(point) + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()


def read(file: Path) -> list[dict[str, Any]]:
    """The points of a curve; a last line that a killed process left incomplete is left out."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def plot(folder: Path, losses: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> None:
    """Draw both curves into curve.png, if matplotlib is installed (extra `plot`)."""
    if importlib.util.find_spec("matplotlib") is None or not losses:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots(1, 2 if evaluations else 1, squeeze=False)[0]
    axes[0].plot([point["step"] for point in losses], [point["loss"] for point in losses], linewidth=0.8)
    axes[0].set(xlabel="step", ylabel="loss")
    if evaluations:
        for name in evaluations[0].keys() - {"step"}:
            steps = [point["step"] for point in evaluations]
            axes[1].plot(steps, [point[name] for point in evaluations], marker="o", label=name)
        axes[1].set(xlabel="step")
        axes[1].legend()
    figure.savefig(folder / "curve.png", dpi=120)


class Reports:
    """TensorBoard and Weights & Biases, where they are asked for.

    Raises:
        ImportError: the package is not installed.
    """

    def __init__(self, targets: Sequence[str], folder: Path, config: Mapping[str, Any]) -> None:
        self._tensorboard = self._wandb = None
        if "tensorboard" in targets:
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(str(folder / "tensorboard"))
        if "wandb" in targets:
            import wandb

            self._wandb = wandb.init(dir=str(folder), config=dict(config), resume="allow")

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Report figures of a step."""
        if self._tensorboard is not None:
            for name, value in figures.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(figures), step=step)

    def close(self) -> None:
        """Send what is left."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
