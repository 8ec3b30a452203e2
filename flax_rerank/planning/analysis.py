"""What a compiled program moves and sends, counted from its instructions: a loop's body times its trips."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from flax_rerank.planning.hlo import Array, Computation, Instruction, Program

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
# These give a name to what exists, or view it.
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


def collectives_of(program: Program) -> tuple[Collective, ...]:
    """The collectives of a compiled program."""
    found = []
    for computation, each, times in program.executed():
        kind = each.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            operands = sum(_total(computation.instructions[name].result) for name in each.operands)
            result = _total(each.result) - (operands if each.opcode == "all-gather-start" else 0)
            found.append(Collective(kind, times, _group_size(each), operands, result, each.source))
    return tuple(found)


def bytes_moved(program: Program) -> float:
    """Bytes that a compiled program reads from and writes to a device's main memory in one step. Of a kernel, which
    cannot be looked into, operands and results are counted once."""
    return sum(times * _bytes_moved(program, computation, each) for computation, each, times in program.executed())


def _total(arrays: Sequence[Array]) -> int:
    return sum(array.bytes for array in arrays)


def _in_memory(arrays: Sequence[Array]) -> int:
    return sum(array.bytes for array in arrays if array.space == 0)


def _bytes_moved(program: Program, computation: Computation, each: Instruction) -> int:
    if each.opcode in FREE:
        return 0
    operands = [computation.instructions[name] for name in each.operands]
    if each.opcode == "copy-start":
        # Its result also names its operand.
        return _in_memory(operands[0].result) + _in_memory(each.result[:1])
    if each.opcode in SLICES:
        return _in_memory(each.result) + _in_memory([_like(operands[0].result[0], each.result[0])])
    if each.opcode == "dynamic-update-slice":
        return 2 * _in_memory([_like(each.result[0], operands[1].result[0])])
    if each.opcode == "slice-start":
        return _in_memory([_like(operands[0].result[0], each.result[1])]) + _in_memory(each.result[1:2])
    if each.opcode != "fusion":
        return _in_memory(each.result) + sum(_in_memory(operand.result) for operand in operands)
    called = program.computations[each.calls("calls")]
    read = sum(
        _in_memory(operand.result) and _bytes_read(program, called, called.parameters[number])
        for number, operand in enumerate(operands)
    )
    return read + _bytes_written(called, each.result)


def _like(place: Array, size: Array) -> Array:
    """An array as large as `size` where `place` is."""
    return Array(size.dtype, size.dims, place.space)


def _bytes_read(program: Program, computation: Computation, value: Instruction) -> int:
    """Bytes of a value that a fused computation reads: if it only slices it, those of the slices."""
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
