"""What a compiled program computes, moves and sends: counted from its instructions, loop bodies times their trips."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flax_rerank.planning.hlo import Array, Computation, Instruction, Program

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
# These name or view what is there already.
FREE = frozenset(
    """
    parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id copy-done slice-done
    async-done async-update all-reduce-done all-gather-done collective-permute-done opt-barrier iota
    """.split()  # noqa: SIM905
)
SLICES = ("dynamic-slice", "slice", "gather")
VIEWS = ("bitcast", "reshape")


@dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
        kind: "all-reduce", "all-gather", ...
        times: how often it runs in a step.
        devices: how many devices take part.
        operand_bytes, result_bytes: of one device, each time.
        source: what it was traced from.
    """

    kind: str
    times: float
    devices: int
    operand_bytes: int
    result_bytes: int
    source: str

    @property
    def sent_bytes(self) -> float:
        """Bytes that each device sends in a step, on a ring: an all-reduce is a reduce-scatter of its operand and an
        all-gather of its result."""
        share = (self.devices - 1) / self.devices
        once = {
            "all-reduce": (self.operand_bytes + self.result_bytes) * share,
            "all-gather": self.result_bytes * share,
            "reduce-scatter": self.operand_bytes * share,
            "all-to-all": self.operand_bytes * share,
            "collective-permute": self.operand_bytes,
        }[self.kind]
        return once * self.times


@dataclass(frozen=True)
class Product:
    """One matrix product of a program, or all those of one of our kernels: `flops` each time it runs, `dtypes` of its
    operands."""

    times: float
    flops: float
    dtypes: tuple[str, ...]
    source: str
    by_kernel: bool = False


@dataclass(frozen=True)
class Counts:
    """What one device does in one step.

    Attributes:
        flops: of matrix products.
        bytes: read from and written to the device's main memory.
    """

    flops: float
    bytes: float
    products: tuple[Product, ...]
    collectives: tuple[Collective, ...]

    @property
    def sent_bytes(self) -> float:
        """Bytes that the device sends to others."""
        return sum(each.sent_bytes for each in self.collectives)


def count(program: Program) -> Counts:
    """Count the work of a compiled program."""
    products: list[Product] = []
    collectives: list[Collective] = []
    moved = 0.0
    for computation, each, times in program.executed():
        moved += times * _bytes_moved(program, computation, each)
        products += _products(program, computation, each, times)
        kind = each.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            operands = sum(_total(computation.instructions[name].result) for name in each.operands)
            result = _total(each.result) - (operands if each.opcode == "all-gather-start" else 0)
            collectives.append(Collective(kind, times, _group_size(each), operands, result, each.source))
    return Counts(
        flops=sum(each.times * each.flops for each in products),
        bytes=moved,
        products=tuple(products),
        collectives=tuple(collectives),
    )


def copies_of(program: Program, dims: Sequence[tuple[int, ...]]) -> list[Instruction]:
    """Instructions that write an array of one of these shapes (axes of size one aside) to main memory, where a program
    that takes weights as they lie has none."""
    wanted = {_without_ones(each) for each in dims}
    found = []
    for _, each, _ in program.executed():
        # What a copy-start names besides its result is its operand.
        written = each.result[:1] if each.opcode == "copy-start" else each.result
        if each.opcode not in (*FREE, "slice-start"):
            found += [each for array in written if array.space == 0 and _without_ones(array.dims) in wanted]
    return found


def _without_ones(dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in dims if size != 1)


def _total(arrays: Sequence[Array]) -> int:
    return sum(array.bytes for array in arrays)


def _in_memory(arrays: Sequence[Array]) -> int:
    return sum(array.bytes for array in arrays if array.space == 0)


def _bytes_moved(program: Program, computation: Computation, each: Instruction) -> float:
    """Bytes that an instruction reads from and writes to main memory."""
    if each.opcode in FREE:
        return 0.0
    operands = [computation.instructions[name] for name in each.operands]
    if each.opcode == "copy-start":
        # Its result also names its operand.
        return _in_memory(operands[0].result) + _in_memory(each.result[:1])
    if each.opcode in SLICES:
        return _in_memory(each.result) + _in_memory([_like(operands[0].result[0], each.result[0])])
    if each.opcode == "dynamic-update-slice":
        return 2.0 * _in_memory([_like(each.result[0], operands[1].result[0])])
    if each.opcode == "slice-start":
        return float(_in_memory([_like(operands[0].result[0], each.result[1])]) + _in_memory(each.result[1:2]))
    if each.opcode != "fusion":
        moved = _in_memory(each.result) + sum(_in_memory(operand.result) for operand in operands)
        return moved + (_said_of_kernel(each, "kernel_reads_again") if each.opcode == "custom-call" else 0.0)
    called = program.computations[each.calls("calls")]
    read = sum(
        _in_memory(operand.result) and _bytes_read(program, called, called.parameters[number])
        for number, operand in enumerate(operands)
    )
    return float(read + _bytes_written(called, each.result))


def _like(place: Array, size: Array) -> Array:
    """An array as large as `size` where `place` is."""
    return Array(size.dtype, size.dims, place.space)


def _bytes_read(program: Program, computation: Computation, value: Instruction) -> int:
    """Bytes of a value that a fused computation reads: of one that is only sliced, the slices."""
    read = 0
    for user in computation.users[value.name]:
        if user.opcode in SLICES and user.operands[0] == value.name:
            read += _total(user.result)
        elif user.opcode in VIEWS:
            read += _bytes_read(program, computation, user)
        elif user.opcode == "fusion":
            called = program.computations[user.calls("calls")]
            numbers = [number for number, name in enumerate(user.operands) if name == value.name]
            read += sum(_bytes_read(program, called, called.parameters[number]) for number in numbers)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
            continue  # updated in place
        else:
            return _total(value.result)
    return min(read, _total(value.result))


def _bytes_written(called: Computation, result: Sequence[Array]) -> int:
    root = called.follow(called.root.name, *VIEWS)
    if root.opcode == "dynamic-update-slice":
        update = called.instructions[root.operands[1]].result[0]
        return _in_memory([_like(result[0], update)])
    return _in_memory(result)


def _products(program: Program, computation: Computation, each: Instruction, times: float) -> list[Product]:
    """The matrix products of an instruction, and of all that are fused into it."""
    if each.opcode == "fusion":
        called = program.computations[each.calls("calls")]
        return [
            product for inner in called.instructions.values() for product in _products(program, called, inner, times)
        ]
    if each.opcode == "custom-call":
        flops = _said_of_kernel(each, "kernel_flops")
    elif each.opcode == "dot":
        flops = _flops_of_dot(computation, each)
    elif each.opcode == "convolution":
        flops = _flops_of_convolution(computation, each)
    else:
        return []
    dtypes = tuple(computation.instructions[name].result[0].dtype for name in each.operands[:2])
    return [Product(times, flops, dtypes, each.source, each.opcode == "custom-call")] if flops else []


def _said_of_kernel(each: Instruction, name: str) -> float:
    """What our own kernels say of themselves; 0 of others."""
    found = re.search(rf'\b{name}="(\d+)"', each.attributes)
    return float(found[1]) if found else 0.0


def _flops_of_dot(computation: Computation, dot: Instruction) -> float:
    lhs = computation.instructions[dot.operands[0]].result[0]
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)[1]
    inner = math.prod(lhs.dims[int(axis)] for axis in contracted.split(",") if axis)
    return 2.0 * math.prod(dot.result[0].dims) * inner


def _flops_of_convolution(computation: Computation, convolution: Instruction) -> float:
    """TPUs write every matrix product as a convolution; axes of a batch become dilated spatial axes, of which each
    output position meets one input."""
    left, right = (computation.instructions[name].result[0].dims for name in convolution.operands)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    out = convolution.result[0].dims
    flops = 2.0 * out[labels[3].index("b")] * out[labels[3].index("f")] * right[labels[2].index("i")]
    described = re.search(r"window=\{([^}]*)\}", convolution.attributes)
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", described[1])) if described else {}
    spatial = [label for label in labels[1] if label.isdigit()]
    for axis, label in enumerate(sorted(spatial, key=int)):
        values = {key: value.split("x")[axis] for key, value in window.items()}
        flops *= _meetings(left[labels[1].index(label)], out[labels[3].index(label)], values)
    return flops


def _meetings(size: int, outputs: int, window: dict[str, str]) -> int:
    """How often a kernel position meets an input position, over all output positions of one axis."""
    width, stride = int(window["size"]), int(window.get("stride", 1))
    dilation, spread = int(window.get("lhs_dilate", 1)), int(window.get("rhs_dilate", 1))
    low = int(window.get("pad", "0_0").split("_")[0])
    position = np.arange(outputs)[:, None] * stride + np.arange(width)[None, :] * spread - low
    return int(np.count_nonzero((position >= 0) & (position % dilation == 0) & (position < (size - 1) * dilation + 1)))


def _group_size(each: Instruction) -> int:
    """How many devices take part in each group of a collective."""
    found = re.search(r"replica_groups=\[\d+,(\d+)\]", each.attributes)
    if found:
        return int(found[1])
    found = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{('[^}]*)\}", each.attributes)
    if found:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    found = re.search(r"replica_groups=\{\{([\d,]+)\}", each.attributes)
    return len(found[1].split(",")) if found else 2
