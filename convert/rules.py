"""The rule table: which PyTorch tensor fills which Flax parameter, and how; both ways.

A rule names one tensor, or one tensor per layer where the name holds `{i}`: those fill the layers of a stacked
parameter. Names match whole. A table is strict on both sides: every tensor is used by exactly one rule (or ignored by
name), and every parameter is filled by exactly one.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from flax_rerank.params import Index, Shape, empty, shape_faults

INDEX = "{i}"
STRIP = 64  # rows of a transposed tensor that are copied at a time


class TensorSource(Protocol):
    """Named tensors that are read one at a time."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold them, and those that say where."""

    def shapes(self) -> Mapping[str, Shape]:
        """The shape of every tensor."""

    def dtypes(self) -> Mapping[str, np.dtype]:
        """The dtype that every tensor is stored in."""

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """A tensor, or a part of it: of the file, little more than that is read."""


@dataclass(frozen=True)
class Layout:
    """How a tensor becomes a parameter or a layer of one: the same numbers, with axes in reverse order if
    `transposed`; or of a tensor whose rows are those of several matrices, one of these: `part` of `parts`.
    """

    transposed: bool
    part: int = 0
    parts: int = 1

    def to_torch_shape(self, shape: Shape) -> Shape:
        """The shape of the tensor that fills a parameter of `shape`."""
        rows, *others = shape[::-1] if self.transposed else shape
        return rows * self.parts, *others

    def read(self, source: TensorSource, name: str, index: Index = ()) -> np.ndarray:
        """The tensor, or its part, as the parameter has it, or what `index` asks for of that."""
        if self.transposed:
            index = index[::-1]
        if self.parts > 1:
            size = source.shapes()[name][0] // self.parts
            start, stop, _ = (index[0] if index else slice(None)).indices(size)
            index = (slice(start + self.part * size, stop + self.part * size), *index[1:])
        array = source.read(name, index)
        return array.T if self.transposed else array

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `read`, bit for bit: the tensor, or its part."""
        return array.T if self.transposed else array


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
        wanted = index[0] if index else slice(None)
        parts = [source.read(name, (slice(row, row + 1), *index[1:])) for row in self.row[wanted]]
        return np.concatenate(parts)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        if self.rows != 1:
            raise ValueError(f"the model has only row {self.row} of {self.rows}, not the whole matrix")
        return array.reshape(1, -1)


Transform: TypeAlias = Layout | Row
IDENTITY, TRANSPOSE = Layout(transposed=False), Layout(transposed=True)


@dataclass(frozen=True)
class Rule:
    """`torch` (a tensor name, `{i}` standing for the layer) fills `flax` (a parameter path). Of a stack that leaves
    out the first layers, `first` is the number of its first one."""

    torch: str
    flax: str
    transform: Transform = IDENTITY
    first: int = 0


def linear(torch: str, flax: str, *, use_bias: bool = True, part: int = 0, parts: int = 1) -> tuple[Rule, ...]:
    """The rules of a linear layer: PyTorch keeps [out, in], Flax [in, out]."""
    kernel = Rule(f"{torch}.weight", f"{flax}.kernel", Layout(True, part, parts))
    return (kernel, Rule(f"{torch}.bias", f"{flax}.bias", Layout(False, part, parts))) if use_bias else (kernel,)


def packed(torch: str, *flax: str, use_bias: bool = True) -> tuple[Rule, ...]:
    """The rules of linear layers whose matrices are one tensor in PyTorch, one below the other."""
    return tuple(
        rule
        for part, path in enumerate(flax)
        for rule in linear(torch, path, use_bias=use_bias, part=part, parts=len(flax))
    )


def rms_norm(torch: str, flax: str) -> tuple[Rule, ...]:
    """The rule of a root-mean-square norm."""
    return (Rule(f"{torch}.weight", f"{flax}.scale"),)


def layer_norm(torch: str, flax: str, *, use_bias: bool = True, first: int = 0) -> tuple[Rule, ...]:
    """The rules of a layer normalisation."""
    scale = Rule(f"{torch}.weight", f"{flax}.scale", first=first)
    return (scale, Rule(f"{torch}.bias", f"{flax}.bias", first=first)) if use_bias else (scale,)


@dataclass(frozen=True)
class Assignment:
    """One tensor, with name and shape in PyTorch, and the parameter that it fills, or the layer of a stacked one; or
    one part of a tensor."""

    tensor: str
    shape: Shape
    path: str
    layer: int | None
    transform: Transform

    @property
    def region(self) -> Index:
        """What the tensor fills, as an index into the parameter."""
        return () if self.layer is None else (self.layer,)

    @property
    def partly_used(self) -> bool:
        """Whether the model has one or two rows of a larger matrix."""
        return isinstance(self.transform, Row) and self.transform.rows > 1


def assignments(rules: Iterable[Rule], params: Mapping[str, Shape]) -> list[Assignment]:
    """The tensors, in PyTorch's layout, of a model whose parameters have these shapes."""
    items = []
    for rule in rules:
        if rule.flax in params:
            shape, stacked = params[rule.flax], INDEX in rule.torch
            torch_shape = rule.transform.to_torch_shape(shape[1:] if stacked else shape)
            for layer in range(shape[0]) if stacked else (None,):
                name = rule.torch if layer is None else rule.torch.replace(INDEX, str(layer + rule.first))
                items.append(Assignment(name, torch_shape, rule.flax, layer, rule.transform))
    return items


def assign(
    tensors: Mapping[str, Shape],
    params: Mapping[str, Shape],
    rules: Sequence[Rule],
    ignored: Iterable[str] = (),
) -> tuple[dict[str, list[Assignment]], list[str]]:
    """Match the tensors of a checkpoint with the parameters of a model, by name and shape.

    Tensors whose whole names match `ignored`, regular expressions, may be left over. Returns the tensors that fill
    each parameter, and a list of faults (empty when all is well).
    """
    items = assignments(rules, params)
    by_path: dict[str, list[Assignment]] = {path: [] for path in params}
    for item in items:
        by_path[item.path].append(item)
    uses = Counter((item.tensor, getattr(item.transform, "part", 0)) for item in items)
    rules_of = Counter(rule.flax for rule in rules)
    faults = [f"tensor {name} is used by {count} rules" for (name, _), count in uses.items() if count > 1]
    faults += [
        f"parameter {path} {list(shape)} is filled by {rules_of[path]} rules instead of one"
        for path, shape in params.items()
        if rules_of[path] != 1
    ]
    unused = [re.compile(pattern) for pattern in ignored]
    used = {name: shape for name, shape in tensors.items() if not any(pattern.fullmatch(name) for pattern in unused)}
    return by_path, faults + shape_faults(used, {item.tensor: item.shape for item in items}, "tensor")


def fill(
    source: TensorSource, items: Sequence[Assignment], shape: Shape, dtype: np.dtype, index: Index = ()
) -> np.ndarray:
    """Read the tensors of one parameter of `shape`, or those of its part `index`, a slice for each of the first axes.
    Of the files, little more than that part is read.
    """
    index = (*index, *(slice(None),) * (len(shape) - len(index)))
    bounds = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
    array = empty(tuple(stop - start for start, stop in bounds), dtype)
    (first, end), part = bounds[0], tuple(slice(*bound) for bound in bounds)
    for item in items:
        if item.layer is None:
            _copy(array, item.transform.read(source, item.tensor, part))
        elif first <= item.layer < end:
            _copy(array[item.layer - first], item.transform.read(source, item.tensor, part[1:]))
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
