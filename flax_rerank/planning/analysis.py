"""What a compiled program moves and sends, counted from its instructions: a loop's body times its trips.

XLA's own count (`cost_analysis`) has one trip of each loop and takes memory on the chip for main memory.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from flax_rerank.planning.hlo import Array, Computation, Instruction

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
    """

    kind: str
    times: float
    devices: int
    operand_bytes: int
    result_bytes: int

    @property
    def sent_bytes(self) -> float:
        """Bytes that each device sends in a step, on a ring: an all-reduce is a reduce-scatter of its operand and an
        all-gather of its result."""
        if self.kind == "collective-permute":
            return self.operand_bytes * self.times
        both = self.operand_bytes + self.result_bytes
        parts = {"all-reduce": both, "all-gather": self.result_bytes}.get(self.kind, self.operand_bytes)
        return parts * (self.devices - 1) / self.devices * self.times


def collectives_of(program: Computation) -> tuple[Collective, ...]:
    """The collectives of a compiled program."""
    found = []
    for each, times in program.executed():
        kind = each.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            operands = sum(_total(operand.result) for operand in each.operands)
            result = _total(each.result) - (operands if each.opcode == "all-gather-start" else 0)
            found.append(Collective(kind, times, _group_size(each), operands, result))
    return tuple(found)


def bytes_moved(program: Computation) -> float:
    """Bytes that a compiled program reads from and writes to a device's main memory in one step. Of a kernel, which
    cannot be looked into, operands and results are counted once."""
    return sum(times * _bytes_moved(each) for each, times in program.executed())


def _total(arrays: Sequence[Array]) -> int:
    return sum(array.bytes for array in arrays)


def _in_memory(arrays: Sequence[Array]) -> int:
    return sum(array.bytes for array in arrays if array.space == 0)


def _part(whole: Array, part: Array) -> int:
    """Bytes of a part of an array, if this is in main memory."""
    return part.bytes if whole.space == 0 else 0


def _bytes_moved(each: Instruction) -> int:
    result, operands = each.result, each.operands
    if each.opcode in FREE:
        return 0
    if each.opcode == "copy-start":
        # Its result also names its operand.
        return _in_memory(operands[0].result) + _in_memory(result[:1])
    if each.opcode in SLICES:
        return _in_memory(result) + _part(operands[0].result[0], result[0])
    if each.opcode == "dynamic-update-slice":
        return 2 * _part(result[0], operands[1].result[0])
    if each.opcode == "slice-start":
        return _part(operands[0].result[0], result[1]) + _in_memory(result[1:2])
    if each.opcode != "fusion":
        return _in_memory(result) + sum(_in_memory(operand.result) for operand in operands)
    (called,) = each.called
    read = sum(
        _in_memory(operand.result) and _bytes_read(called.parameter(number)) for number, operand in enumerate(operands)
    )
    root = called.root.behind(*VIEWS)
    updates = root.opcode == "dynamic-update-slice"
    return read + (_part(result[0], root.operands[1].result[0]) if updates else _in_memory(result))


def _bytes_read(value: Instruction) -> int:
    """Bytes of a value that the fused computation it is in reads: if it only slices it, those of the slices."""
    read = 0
    for user in value.users:
        if user.opcode in SLICES and user.operands[0] is value:
            read += _total(user.result)
        elif user.opcode in VIEWS:
            read += _bytes_read(user)
        elif user.opcode == "fusion":
            numbers = (number for number, operand in enumerate(user.operands) if operand is value)
            read += sum(_bytes_read(user.called[0].parameter(number)) for number in numbers)
        elif user.opcode != "dynamic-update-slice" or user.operands[0] is not value:  # updated in place
            return _total(value.result)
    return min(read, _total(value.result))


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
