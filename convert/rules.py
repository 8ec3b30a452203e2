"""The rule table: which PyTorch tensor fills which Flax parameter, and how; both ways.

A rule names one tensor, or one tensor per layer where the name holds `{i}`: those fill the slices of a
stacked parameter. Tensors that Flax keeps side by side (query, key, value) fill slots of one parameter, along
its last but one axis. Names match whole. A table is strict on both sides: `assign` wants every tensor taken
by exactly one rule (or ignored by name) and every slice of every parameter filled exactly once.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from flax_rerank.params import Index, Shape, empty, shape_faults

INDEX = "{i}"
STRIP = 64  # rows of a transposed tensor that are copied at a time


class TensorSource(Protocol):
    """Named tensors that are read one at a time."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold them, and those that say where."""
        ...

    def shapes(self) -> Mapping[str, Shape]:
        """The shape of every tensor."""
        ...

    def dtypes(self) -> Mapping[str, np.dtype]:
        """The dtype that every tensor is stored in."""
        ...

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """A tensor, or a part of it: of the file, little more than that is read."""
        ...


class Transform(Protocol):
    """How a tensor becomes (a part of) a parameter."""

    def to_torch_shape(self, shape: Shape) -> Shape:
        """The shape of the tensor that fills a parameter of `shape`."""
        ...

    def read(self, source: TensorSource, name: str, index: Index = ()) -> np.ndarray:
        """The tensor as the parameter has it, or the part of it that `index` asks for."""
        ...

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `read`, bit for bit."""
        ...


@dataclass(frozen=True)
class Layout:
    """The same numbers with axes in another order."""

    axes: tuple[int, ...] | None = None

    def to_torch_shape(self, shape: Shape) -> Shape:
        return shape if self.axes is None else tuple(shape[axis] for axis in np.argsort(self.axes))

    def read(self, source: TensorSource, name: str, index: Index = ()) -> np.ndarray:
        if self.axes is None:
            return source.read(name, index)
        swapped = tuple(index[axis] for axis in np.argsort(self.axes)) if index else ()
        return source.read(name, swapped).transpose(self.axes)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        return array if self.axes is None else array.transpose(np.argsort(self.axes))


@dataclass(frozen=True)
class Row:
    """One or two rows of a matrix with `rows` of them; the others are never read.

    `row` is as in `matrix[row]` of numpy: a number drops the axis of rows, a tuple keeps it.
    """

    row: int | tuple[int, ...]
    rows: int

    def to_torch_shape(self, shape: Shape) -> Shape:
        return self.rows, shape[-1]

    def read(self, source: TensorSource, name: str, index: Index = ()) -> np.ndarray:
        if isinstance(self.row, int):
            return source.read(name, (slice(self.row, self.row + 1), *index))[0]
        if not self.row:
            raise ValueError(f"no row of {name} is chosen: the readout must name the tokens that score")
        picked, rest = (self.row[index[0]], index[1:]) if index else (self.row, ())
        return np.concatenate([source.read(name, (slice(row, row + 1), *rest)) for row in picked])

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        if self.rows != 1:
            raise ValueError(f"only row {self.row} of {self.rows} was kept; the matrix cannot be given back")
        return array.reshape(1, -1)


IDENTITY = Layout()
TRANSPOSE = Layout(axes=(1, 0))


@dataclass(frozen=True)
class Rule:
    """`torch` (a tensor name, `{i}` standing for the layer) fills `flax` (a parameter path), or a slot of it."""

    torch: str
    flax: str
    transform: Transform = IDENTITY
    slot: int | None = None

    @property
    def stacked(self) -> bool:
        return INDEX in self.torch

    def tensor_shape(self, shape: Shape) -> Shape:
        """The shape in PyTorch of a tensor of a parameter of `shape`."""
        shape = shape[1:] if self.stacked else shape
        shape = shape if self.slot is None else (*shape[:-2], shape[-1])
        return self.transform.to_torch_shape(shape)

    def assignments(self, shape: Shape) -> "list[Assignment]":
        """The tensors that fill a parameter of `shape`, one a layer if it is stacked."""
        indices = range(shape[0]) if self.stacked else (None,)
        return [Assignment(self.torch.replace(INDEX, str(index)), self, index) for index in indices]


def linear(torch: str, flax: str, *, use_bias: bool = True, slot: int | None = None) -> tuple[Rule, ...]:
    """The rules of a linear layer: PyTorch keeps [out, in], Flax [in, out]."""
    kernel = Rule(f"{torch}.weight", f"{flax}.kernel", TRANSPOSE, slot)
    return (kernel, Rule(f"{torch}.bias", f"{flax}.bias", slot=slot)) if use_bias else (kernel,)


def rms_norm(torch: str, flax: str) -> tuple[Rule, ...]:
    """The rule of a root-mean-square norm."""
    return (Rule(f"{torch}.weight", f"{flax}.scale"),)


def layer_norm(torch: str, flax: str) -> tuple[Rule, ...]:
    """The rules of a layer normalisation with scale and bias."""
    return Rule(f"{torch}.weight", f"{flax}.scale"), Rule(f"{torch}.bias", f"{flax}.bias")


@dataclass(frozen=True)
class Assignment:
    """One tensor and the parameter, or slice of a parameter, that it fills."""

    tensor: str
    rule: Rule
    index: int | None

    @property
    def region(self) -> Index:
        """What the tensor fills, as an index into the parameter."""
        layer = () if self.index is None else (self.index,)
        return (*layer, ...) if self.rule.slot is None else (*layer, ..., self.rule.slot, slice(None))


def assign(
    tensors: Mapping[str, Shape],
    params: Mapping[str, Shape],
    rules: Sequence[Rule],
    ignored: Iterable[str] = (),
) -> tuple[dict[str, list[Assignment]], list[str]]:
    """Match tensors to parameters.

    Args:
        tensors: name and shape of every tensor of the checkpoint.
        params: path and shape of every parameter of the model.
        rules: the table.
        ignored: regular expressions (whole names) of tensors that the model has no use for.

    Returns:
        The tensors that fill each parameter, and a list of faults (empty when all is well).
    """
    unused = [re.compile(pattern) for pattern in ignored]
    used = {name: shape for name, shape in tensors.items() if not any(pattern.fullmatch(name) for pattern in unused)}
    faults = []
    assignments: dict[str, list[Assignment]] = {}
    wanted: dict[str, Shape] = {}
    for path, shape in params.items():
        takers = [rule for rule in rules if rule.flax == path]
        slots = [rule.slot for rule in takers]
        if not takers:
            faults.append(f"parameter {path} {list(shape)} has no rule")
        elif slots != [None] and (None in slots or sorted(slots) != list(range(shape[-2]))):
            faults.append(f"parameter {path} {list(shape)} has rules for the slots {slots}")
        items = {item: item.rule.tensor_shape(shape) for rule in takers for item in rule.assignments(shape)}
        faults += [f"tensor {item.tensor} is taken by two rules" for item in items if item.tensor in wanted]
        wanted |= {item.tensor: fitting for item, fitting in items.items()}
        assignments[path] = [item for item, fitting in items.items() if used.get(item.tensor) == fitting]
    return assignments, faults + shape_faults(used, wanted, "tensor")


def fill(
    source: TensorSource, assignments: Sequence[Assignment], shape: Shape, dtype: np.dtype, index: Index = ()
) -> np.ndarray:
    """Read the tensors of one parameter, or those of its part `index`.

    Args:
        source: the tensors.
        assignments: those of the parameter.
        shape: that of the whole parameter.
        dtype: of the result.
        index: a slice for each axis; only what lies in it is read.
    """
    bounds = [part.indices(size)[:2] for part, size in zip(index or (slice(None),) * len(shape), shape, strict=True)]
    array = empty(tuple(stop - start for start, stop in bounds), dtype)
    for item in assignments:
        taken = {
            axis: place for axis, place in ((0, item.index), (len(shape) - 2, item.rule.slot)) if place is not None
        }
        if any(not bounds[axis][0] <= place < bounds[axis][1] for axis, place in taken.items()):
            continue
        rest = tuple(slice(*bound) for axis, bound in enumerate(bounds) if axis not in taken)
        region = tuple(taken[axis] - bounds[axis][0] if axis in taken else slice(None) for axis in range(len(shape)))
        _copy(array[region], item.rule.transform.read(source, item.tensor, rest))
    return array


def _copy(target: np.ndarray, part: np.ndarray) -> None:
    """`target[...] = part`, cast."""
    if part.dtype == target.dtype:  # as whole numbers: numpy copies those of dtypes that are not its own one by one
        bits = np.dtype(f"u{target.dtype.itemsize}")
        target, part = target.view(bits), part.view(bits)
    if part.ndim != 2 or part.flags.c_contiguous:
        target[...] = part
        return
    # A strip of a transposed tensor stays in the cache until all its lines are used: three times as fast.
    for start in range(0, part.shape[1], STRIP):
        target[:, start : start + STRIP] = part[:, start : start + STRIP]
