"""A Flax checkpoint against the PyTorch checkpoint that it came from, tensor by tensor and bit for bit."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flax_rerank import checkpoint, convert
from flax_rerank.checkpoint import KEPT
from flax_rerank.convert.peft import merge_adapter
from flax_rerank.convert.rules import Row, TensorSource, assign
from flax_rerank.convert.torch_files import SafetensorsFiles, open_torch_files
from flax_rerank.params import CheckpointError
from flax_rerank.spec import open_spec

MOST_FAULTS = 10
BLOCK = 1 << 20  # numbers that are compared at a time


@dataclass(frozen=True)
class TensorCheck:
    """What a comparison of all tensors found.

    Attributes:
        tensors: tensors of the source that were compared.
        bytes: of the parameters that were compared, in the checkpoint's dtype.
        largest_difference: between any number in the checkpoint and its source in the checkpoint's dtype; infinite
            where only one is a finite number.
        faults: why the check fails; empty where all bits are equal.
    """

    tensors: int
    bytes: int
    largest_difference: float
    faults: tuple[str, ...]


def check_tensors(source: Path, folder: Path, adapter: Path | None = None) -> TensorCheck:
    """Give every parameter in `folder` back to PyTorch's layout, and compare it with its source.

    One tensor at a time is in memory, twice.

    Args:
        source: the PyTorch checkpoint.
        folder: the Flax checkpoint.
        adapter: the folder of the LoRA adapter that was merged.

    Raises:
        FileNotFoundError, CheckpointError, ValueError: one of the checkpoints cannot be read.
    """
    converted = open_spec(str(folder))
    hf = convert.read_config(source)
    params = checkpoint.StoredParams(folder / checkpoint.PARAMS)
    dtypes = params.dtypes()
    family = convert.family_of(hf)
    tensors: TensorSource = open_torch_files(source)
    if adapter is not None:
        tensors = merge_adapter(tensors, adapter, family.ignored(converted.readout))
    rules = family.rules(converted.config, converted.readout, hf)
    assignments, faults = assign(tensors.shapes(), params.shapes(), rules, family.ignored(converted.readout))
    if faults:
        return TensorCheck(0, 0, np.inf, _most(faults))
    if converted.hf != hf:
        faults.append("config.json holds another source_config than the source has")

    def pairs() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """The name of each tensor, as it is in the checkpoint, and as it is in the source."""
        items = itertools.chain(*assignments.values())
        for item in sorted(items, key=lambda item: -1 if item.index is None else item.index):  # layer by layer
            path, transform = item.rule.flax, item.rule.transform
            found = params.read(path, dtypes[path], item.region)
            if isinstance(transform, Row):
                yield item.tensor, found, transform.read(tensors, item.tensor)
            else:
                yield item.tensor, transform.to_torch(found), tensors.read(item.tensor)
        if (folder / KEPT).is_file():
            kept = SafetensorsFiles(folder, [KEPT])
            for name in kept.shapes():
                yield f"{name} in {KEPT}", kept.read(name), tensors.read(name)

    count = size = 0
    largest = 0.0
    try:
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
    return TensorCheck(count, size, largest, _most(faults))


def _most(faults: list[str]) -> tuple[str, ...]:
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
