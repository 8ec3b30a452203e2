"""The text of a compiled program (XLA's HLO), read into a graph of instructions."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64,
    "token": 0,
}  # fmt: skip

HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*?)\)(?:, (.*))?")
NAME = re.compile(r"%([\w.\-]+)")
ARRAY = re.compile(r"(\w+)\[([\d,<=\s]*)\](?:\{([^{}]*)\})?")
CALLED = re.compile(
    r"\b(?:calls|to_apply|condition|body|branch_computations|true_computation|false_computation)=(\{[^}]*\}|%[\w.\-]+)"
)
INDEX = re.compile(r"\bindex=(\d+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass(frozen=True)
class Array:
    """One array of an instruction's result.

    Attributes:
        space: the memory it is in: 0 is the device's main memory, others are on the chip.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> int:
        return math.prod(self.dims) * BITS[self.dtype] // 8


@dataclass(frozen=True, eq=False)
class Instruction:
    """One instruction.

    Attributes:
        value: of a parameter its number, of a constant what it holds.
        attributes: the rest of its line.
        called: the computations that it runs: of a loop the condition and the body, of a conditional its branches.
        users: the instructions of the same computation that it is an operand of.
    """

    name: str
    result: tuple[Array, ...]
    opcode: str
    operands: "tuple[Instruction, ...]"
    value: str
    attributes: str
    called: "tuple[Computation, ...]"
    users: "list[Instruction]" = field(default_factory=list)

    def behind(self, *opcodes: str) -> "Instruction":
        """The instruction itself, or if it has one of these opcodes, what is behind its first operand."""
        return self.operands[0].behind(*opcodes) if self.opcode in opcodes else self


@dataclass
class Computation:
    """Instructions by name, in order, and the last of them, which is the result."""

    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: Instruction = field(init=False)

    def parameter(self, number: int) -> Instruction:
        named = (each for each in self.instructions.values() if each.opcode == "parameter")
        return next(each for each in named if int(each.value) == number)

    def executed(self, times: float = 1) -> Iterator[tuple[Instruction, float]]:
        """Every instruction that runs by itself, not inside of a fusion, and how often it runs. A conditional takes
        each of its branches equally often: exact for windows in every other layer."""
        for each in self.instructions.values():
            if each.opcode == "while":
                yield from each.called[1].executed(times * trips(each))
            elif each.opcode in ("call", "conditional"):
                for branch in each.called:
                    yield from branch.executed(times / len(each.called))
            else:
                yield each, times


def trips(loop: Instruction) -> int:
    """How often a loop that counts up by one runs.

    Raises:
        ValueError: the program does not say.
    """
    known = TRIPS.search(loop.attributes)
    if known:
        return int(known[1])
    compare = loop.called[0].root
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        raise ValueError(f"the trips of {loop.name} are not known: its condition is a {compare.opcode}")
    bounds = []
    for operand in compare.operands:
        bound = operand.behind("copy", "bitcast")
        if bound.opcode == "get-tuple-element":
            carried = loop.operands[0].behind("copy").operands[int(INDEX.findall(bound.attributes)[0])]
            bound = carried.behind("copy", "bitcast", "copy-done", "copy-start")
        if bound.opcode != "constant":
            raise ValueError(f"the trips of {loop.name} are not known: a bound of it is a {bound.opcode}")
        bounds.append(int(bound.value))
    return bounds[1] - bounds[0]


def parse(text: str) -> Computation:
    """Read the text of a compiled program, as `jax.stages.Compiled.as_text` gives it.

    Returns:
        The computation that the program starts with. The text has each computation before those that call it.
    """
    computations: dict[str, Computation] = {}
    entry, current = None, Computation()
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            current = computations[header[2]] = Computation()
            entry = current if header[1] else entry
        elif computations and " = " in line:
            _add(line, current, computations)
    if entry is None:
        raise ValueError("the text of the compiled program has no entry computation")
    return entry


def _add(line: str, computation: Computation, computations: dict[str, Computation]) -> None:
    found = INSTRUCTION.fullmatch(line)
    if found is None:
        raise ValueError(f"this is not an instruction of a compiled program: {line.strip()[:80]}")
    is_root, name, result, opcode, inside, attributes = found.groups(default="")
    has_value = opcode in ("parameter", "constant")
    arrays = tuple(
        Array(dtype, tuple(int(size.strip().removeprefix("<=")) for size in dims.split(",") if size), _space(layout))
        for dtype, dims, layout in ARRAY.findall(result)
        if dtype in BITS
    )
    instruction = Instruction(
        name,
        arrays,
        opcode,
        () if has_value else tuple(computation.instructions[each] for each in NAME.findall(inside)),
        inside if has_value else "",
        attributes,
        tuple(computations[each] for each in NAME.findall("".join(CALLED.findall(attributes)))),
    )
    for operand in dict.fromkeys(instruction.operands):
        operand.users.append(instruction)
    computation.instructions[name] = instruction
    if is_root:
        computation.root = instruction


def _space(layout: str) -> int:
    found = re.search(r"S\((\d+)\)", layout)
    return int(found[1]) if found else 0
