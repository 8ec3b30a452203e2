"""A Flax checkpoint against the PyTorch checkpoint that it came from, tensor by tensor and bit for bit."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flax_rerank import convert
from flax_rerank.checkpoint import open_params
from flax_rerank.convert.rules import Row
from flax_rerank.convert.torch_files import SafetensorsFiles
from flax_rerank.dtypes import FLOAT32
from flax_rerank.params import CheckpointError
from flax_rerank.quantization import rounded
from flax_rerank.spec import open_spec

MOST_FAULTS = 10
BLOCK = 1 << 20  # numbers that are compared at a time


@dataclass(frozen=True)
class Check:
    """One line of a verification: how much of what was compared, and the largest difference (infinite where only one
    of two numbers is finite). `faults` say why the check failed, `skipped` why it was not made.
    """

    what: str
    count: int = 0
    bytes: int | None = None
    largest_difference: float | None = None
    faults: tuple[str, ...] = ()
    skipped: str | None = None

    @property
    def verdict(self) -> str:
        if self.skipped:
            return "not made"
        return "FAILED" if self.faults else "close" if self.largest_difference else "equal"


def check_tensors(source: Path, folder: Path, adapter: Path | None = None) -> Check:
    """Give every parameter in `folder` PyTorch's layout again, and compare it bit for bit with its source in the
    checkpoint's dtype, which is quantized again where the parameter is int8. One tensor at a time is in memory, twice.

    Raises:
        FileNotFoundError, ValueError: one of the checkpoints cannot be opened.
    """
    spec, config = open_spec(str(folder)), convert.read_config(source)
    hf = config if adapter is None else convert.peft.with_head(config, adapter)
    module = spec.module(FLOAT32)
    count = size = 0
    largest = 0.0
    faults = [] if spec.hf == hf else ["config.json has another source_config than the source"]
    try:
        opened = convert.open_checkpoint(source, hf, spec.config, spec.readout, module, adapter)
        params = open_params(folder, module)
        dtypes = params.dtypes()
        quantized = params.quantized

        def pairs() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
            """The name of each tensor, as it is in the checkpoint, and as it is in the source."""
            items = itertools.chain(*opened.assignments.values())
            for item in sorted(items, key=lambda item: -1 if item.layer is None else item.layer):  # layer by layer
                found = params.read(item.path, dtypes[item.path], item.region)
                if item.path in quantized:
                    yield item.tensor, found, rounded(item.path, item.transform.read(opened.source, item.tensor))
                elif isinstance(item.transform, Row) or item.transform.parts > 1:
                    yield item.tensor, found, item.transform.read(opened.source, item.tensor)
                else:
                    yield item.tensor, item.transform.to_torch(found), opened.source.read(item.tensor)
            if spec.kept is not None:
                kept = SafetensorsFiles(folder, [spec.kept.name])
                for name in kept.shapes():
                    yield f"{name} in {spec.kept.name}", kept.read(name), opened.source.read(name)

        for name, found, wanted in pairs():
            count += 1
            size += found.nbytes
            difference = compare(found, wanted)
            if difference is not None:
                faults.append(f"tensor {name} differs from the source by up to {difference:.3g}")
                largest = max(largest, difference)
    except CheckpointError as error:
        faults += error.faults
        largest = np.inf
    return Check("tensors", count, size, largest, _most(faults))


def _most(faults: Sequence[str]) -> tuple[str, ...]:
    more = [f"and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
    return (*faults[:MOST_FAULTS], *more)


def compare(found: np.ndarray, wanted: np.ndarray) -> float | None:
    """The largest difference between two arrays, the second one cast to the dtype of the first; None where all bits
    are equal, infinite where only one is a finite number."""
    bits = np.dtype(f"u{found.dtype.itemsize}")
    rows = max(1, BLOCK // max(1, found[:1].size))
    largest = None
    for start in range(0, len(found), rows):
        left = found[start : start + rows]
        with np.errstate(over="ignore"):
            right = wanted[start : start + rows].astype(left.dtype, copy=False)
        if np.array_equal(left.view(bits), right.view(bits)):
            continue
        with np.errstate(invalid="ignore"):
            difference = np.abs(left.astype(np.float64) - right.astype(np.float64))
        worst = np.inf if np.isnan(difference).any() else float(difference.max())
        largest = worst if largest is None else max(largest, worst)
    return largest
