"""The rule table: which PyTorch tensor fills which Flax parameter, and how; both ways.

A rule names one tensor, or one tensor per layer where the name holds `{i}`: those fill the slices of a
stacked parameter. Tensors that Flax keeps side by side (query, key, value) fill slots of one parameter, along
its last but one axis. Names match whole. A table is strict on both sides: `assign` wants every tensor matched
by exactly one rule (or ignored by name) and every slice of every parameter filled exactly once.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Shape = tuple[int, ...]
Index = tuple[slice, ...]  # the same as `array[index]`: an empty one is the whole array
INDEX = "{i}"
ALIGNMENT = 64
STRIP = 64  # rows of a transposed tensor that are copied at a time


class CheckpointError(ValueError):
    """A checkpoint that cannot become the model it should be. `faults` lists every reason found."""

    def __init__(self, source: object, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__(f"{source} cannot be loaded:\n" + "\n".join(f"  - {fault}" for fault in self.faults))


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

    def region(self, index: int | None) -> tuple[Any, ...]:
        """What the tensor fills, as an index into the parameter."""
        layer = () if index is None else (index,)
        return (*layer, ...) if self.slot is None else (*layer, ..., self.slot, slice(None))

    def tensor_shape(self, shape: Shape) -> Shape:
        """The shape in PyTorch of a tensor of a parameter of `shape`."""
        shape = shape[1:] if self.stacked else shape
        shape = shape if self.slot is None else (*shape[:-2], shape[-1])
        return self.transform.to_torch_shape(shape)

    def match(self, name: str) -> tuple[bool, int | None]:
        """Whether the rule is for this tensor, and the slice of the parameter that it fills."""
        pattern = re.escape(self.torch).replace(re.escape(INDEX), "(0|[1-9][0-9]*)")
        found = re.fullmatch(pattern, name)
        if found is None:
            return False, None
        return True, int(found.group(1)) if found.groups() else None

    def torch_name(self, index: int | None) -> str:
        """The inverse of `match`."""
        return self.torch if index is None else self.torch.replace(INDEX, str(index))


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
        The assignments of each parameter in slice order, and a list of faults (empty when all is well).
    """
    ignored = [re.compile(pattern) for pattern in ignored]
    filled: dict[str, dict[tuple[int, int], Assignment]] = {path: {} for path in params}
    faults = []
    for name, shape in tensors.items():
        if any(pattern.fullmatch(name) for pattern in ignored):
            continue
        matches = [(rule, index) for rule in rules for hit, index in [rule.match(name)] if hit]
        if len(matches) != 1:
            problem = "left over: no rule takes it" if not matches else f"taken by {len(matches)} rules"
            faults.append(f"tensor {name} {list(shape)} is {problem}")
            continue
        rule, index = matches[0]
        key = (index or 0, rule.slot or 0)
        if rule.flax not in params:
            faults.append(f"tensor {name} {list(shape)} is left over: the model has no {rule.flax}")
        elif index is not None and index >= params[rule.flax][0]:
            faults.append(f"tensor {name} {list(shape)} is left over: the model has {params[rule.flax][0]} of these")
        elif shape != rule.tensor_shape(params[rule.flax]):
            wanted = rule.tensor_shape(params[rule.flax])
            faults.append(f"tensor {name} has shape {list(shape)}, the config asks for {list(wanted)}")
        elif key in filled[rule.flax]:
            faults.append(f"tensor {name} fills {rule.flax} a second time")
        else:
            filled[rule.flax][key] = Assignment(name, rule, index)
    for path, shape in params.items():
        takers = [rule for rule in rules if rule.flax == path]
        if not takers:
            faults.append(f"parameter {path} {list(shape)} has no rule")
        slots = sorted(rule.slot for rule in takers if rule.slot is not None)
        if slots and slots != list(range(shape[-2])):
            faults.append(f"parameter {path} {list(shape)} has rules for the slots {slots} only")
        for rule in takers:
            names = map(rule.torch_name, range(shape[0]) if rule.stacked else (None,))
            faults += [f"tensor {name} is missing" for name in names if name not in tensors]
    return {path: [parts[key] for key in sorted(parts)] for path, parts in filled.items()}, faults


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


def empty(shape: Shape, dtype: np.dtype) -> np.ndarray:
    """An array whose numbers are not set, at an address that is a multiple of 64: the CPU backend of JAX takes such
    arrays as they are, and copies all others."""
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


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


def unfill(array: np.ndarray, rule: Rule) -> dict[str, np.ndarray]:
    """The inverse of `fill` for one rule: the tensors, by PyTorch name, that it took."""
    indices = range(len(array)) if rule.stacked else (None,)
    return {rule.torch_name(i): rule.transform.to_torch(array[rule.region(i)]) for i in indices}
