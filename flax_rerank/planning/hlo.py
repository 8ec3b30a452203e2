"""The text of a compiled program (XLA's HLO), read into computations and instructions."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64,
    "token": 0,
}  # fmt: skip

HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
INSTRUCTION = re.compile(r"(ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)(\(.*)")
NAME = re.compile(r"%([\w.\-]+)")
ARRAY = re.compile(r"(\w+)\[([\d,<=\s]*)\](?:\{([^{}]*)\})?")
BRANCHES = re.compile(r"(?:branch_computations=\{[^}]*\}|(?:true|false)_computation=%[\w.\-]+)")
OP_NAME = re.compile(r'op_name="([^"]*)"')
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


@dataclass(frozen=True)
class Instruction:
    """One instruction. `operands` are names of instructions of the same computation; `attributes` is the rest of its
    line."""

    name: str
    result: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def source(self) -> str:
        """What it was traced from, as JAX names it; empty where the compiler made it."""
        found = OP_NAME.search(self.attributes)
        return found[1] if found else ""

    def calls(self, attribute: str) -> str:
        """The name of a computation that it calls."""
        return re.findall(rf"\b{attribute}=%([\w.\-]+)", self.attributes)[0]

    @property
    def branches(self) -> tuple[str, ...]:
        """The computations that a conditional chooses from."""
        return tuple(NAME.findall("".join(BRANCHES.findall(self.attributes))))


@dataclass
class Computation:
    """Instructions by name, in order; parameters by number."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(each.operands[0]): each for each in self.instructions.values() if each.opcode == "parameter"}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for each in self.instructions.values():
            for operand in users.keys() & each.operands:
                users[operand].append(each)
        return users

    @property
    def root(self) -> Instruction:
        return next(each for each in self.instructions.values() if each.is_root)

    def follow(self, name: str, *opcodes: str) -> Instruction:
        """The instruction behind `name`, seen through those of the given opcodes with one operand."""
        found = self.instructions[name]
        while found.opcode in opcodes:
            found = self.instructions[found.operands[0]]
        return found


@dataclass(frozen=True)
class Program:
    """A compiled program of one device."""

    computations: dict[str, Computation]
    entry: Computation

    def executed(self) -> Iterator[tuple[Computation, Instruction, float]]:
        """Every instruction that runs by itself, not inside of a fusion, with its computation and how often it runs.
        A conditional takes each of its branches equally often: exact for windows in every other layer."""
        yield from self._executed(self.entry, 1)

    def _executed(self, computation: Computation, times: float) -> Iterator[tuple[Computation, Instruction, float]]:
        for each in computation.instructions.values():
            if each.opcode == "while":
                body = self.computations[each.calls("body")]
                yield from self._executed(body, times * self.trips(computation, each))
            elif each.opcode == "call":
                yield from self._executed(self.computations[each.calls("to_apply")], times)
            elif each.opcode == "conditional":
                for branch in each.branches:
                    yield from self._executed(self.computations[branch], times / len(each.branches))
            else:
                yield computation, each, times

    def trips(self, computation: Computation, loop: Instruction) -> int:
        """How often a loop that counts up by one runs.

        Raises:
            ValueError: the program does not say.
        """
        known = TRIPS.search(loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations[loop.calls("condition")]
        compare = condition.root
        if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
            raise ValueError(f"the trips of {loop.name} are not known: its condition is a {compare.opcode}")
        bounds = []
        for operand in compare.operands:
            found = condition.follow(operand, "copy", "bitcast")
            if found.opcode == "get-tuple-element":
                index = int(INDEX.findall(found.attributes)[0])
                carry = computation.follow(loop.operands[0], "copy")
                found = computation.follow(carry.operands[index], "copy", "bitcast", "copy-done", "copy-start")
            if found.opcode != "constant":
                raise ValueError(f"the trips of {loop.name} are not known: a bound of it is a {found.opcode}")
            bounds.append(int(found.operands[0]))
        return bounds[1] - bounds[0]


def parse(text: str) -> Program:
    """Read the text of a compiled program, as `jax.stages.Compiled.as_text` gives it."""
    computations: dict[str, Computation] = {}
    entry = current = None
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            current = computations[header[2]] = Computation(header[2])
            entry = current if header[1] else entry
        elif current is not None and " = " in line:
            instruction = _instruction(line.strip())
            current.instructions[instruction.name] = instruction
        elif line == "}":
            current = None
    if entry is None:
        raise ValueError("the text of the compiled program has no entry computation")
    return Program(computations, entry)


def _instruction(line: str) -> Instruction:
    found = INSTRUCTION.fullmatch(line)
    if found is None:
        raise ValueError(f"this is not an instruction of a compiled program: {line[:80]}")
    is_root, name, result, opcode, rest = found.groups()
    end = _closing(rest)
    inside = rest[1 : end - 1]
    # A parameter has its number instead of operands, a constant its value.
    operands = (inside,) if opcode in ("parameter", "constant") else tuple(NAME.findall(inside))
    arrays = tuple(
        Array(dtype, tuple(int(size.strip().removeprefix("<=")) for size in dims.split(",") if size), _space(layout))
        for dtype, dims, layout in ARRAY.findall(result)
        if dtype in BITS
    )
    return Instruction(name, arrays, opcode, operands, rest[end:], is_root is not None)


def _space(layout: str) -> int:
    found = re.search(r"S\((\d+)\)", layout)
    return int(found[1]) if found else 0


def _closing(text: str) -> int:
    """The position after the parenthesis that closes the one `text` starts with."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.end()
    raise ValueError(f"this parenthesis is never closed: {text[:80]}")
