"""Sequence lengths to a plan of fixed-shape steps.

Every step is a batch of a shape (rows, length) that is compiled once, and the shapes come from a short table. Pairs
are sorted by length and taken from the longest: a step that pairs of its length cannot fill is filled with the next
shorter ones, so that only the last step has empty rows.

Small calls use a table that is always the same. Large ones have theirs fitted to their lengths, and it is kept for
later calls that it serves as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

GRID = 8
TABLE_SIZE = 10
MIN_STEP_TOKENS = 1024
MAX_STEP_TOKENS = 16384
# On a CPU large steps ask the system for their memory each time, and small ones copy a layer's weights too often where
# these are more than its caches hold.
MAX_STEP_TOKENS_ON_CPU = {512: 1024, 2**31: 4096}  # up to a width
FIT_FROM = 256
AS_GOOD = 1.02
NEARLY_FULL = 0.75


class Shape(NamedTuple):
    """The shape of a batch."""

    rows: int
    length: int

    @property
    def tokens(self) -> int:
        """Rows times length."""
        return self.rows * self.length


Table = tuple[Shape, ...]


@dataclass(frozen=True)
class Step:
    """One batch: which pairs, and its shape."""

    pairs: np.ndarray
    shape: Shape

    def halves(self, multiple: int) -> list["Step"]:
        """The same pairs in steps of half as many rows, which are a multiple of `multiple`."""
        rows = -(-self.shape.rows // (2 * multiple)) * multiple
        shape = Shape(rows, self.shape.length)
        parts = self.pairs[:rows], self.pairs[rows:]
        return [Step(part, shape) for part in parts if len(part) or part is parts[0]]


@dataclass(frozen=True)
class Planner:
    """What bounds a plan.

    Attributes:
        limit: tokens of the longest input that there can be.
        budget: tokens that a step may compute at the most; one row per device is always taken.
        multiple: rows are a multiple of this, the devices on the mesh's data axis.
        max_step_tokens: on each device.
    """

    limit: int
    budget: int
    multiple: int = 1
    max_step_tokens: int = MAX_STEP_TOKENS

    def choose(self, lengths: np.ndarray, known: Sequence[Table] = ()) -> Table:
        """The table for pairs of these lengths: the default one for few pairs; for many a fitted one, unless one of
        the `known` computes hardly more."""
        if len(lengths) < FIT_FROM:
            return self.default_table(lengths)
        fitted = self.fit_table(lengths)
        new = self.steps(lengths, fitted)
        for table in known:
            if table[-1].length < lengths.max() or max(map(self._tokens_above_budget, table)) > 0:
                continue
            steps = self.steps(lengths, table)
            if computed_tokens(steps) <= AS_GOOD * computed_tokens(new) and len(steps) <= 2 * len(new):
                return table
        return fitted

    def default_table(self, lengths: np.ndarray) -> Table:
        """Lengths 32, 48, 64, and then four to each doubling (80, 96, 112, 128, 160, ...) up to the limit."""
        table = [32, 48, 64]
        while table[-1] < self.limit:
            table.append(table[-1] + _power_of_two_at_least(table[-1] + 1) // 8)
        tokens = self._step_tokens(lengths)
        return tuple(
            Shape(self._rows(length, tokens), length)
            for length in (*(length for length in table if length < self.limit), self.limit)
        )

    def fit_table(self, lengths: np.ndarray) -> Table:
        """The table of at most `TABLE_SIZE` shapes that computes the fewest tokens for these pairs.

        Lengths by dynamic programming over the multiples of eight, with or without the very longest pairs, which share
        a step with others in any case.
        """
        longest_first = -np.sort(-lengths)
        top = min(-(-int(longest_first[0]) // GRID) * GRID, self.limit)
        choices = [fit_lengths(longest_first, top, TABLE_SIZE)]
        if len(lengths) > self.multiple:
            rest = longest_first[self.multiple :]
            below = min(-(-int(rest[0]) // GRID) * GRID, top)
            choices.append(sorted({*fit_lengths(rest, below, TABLE_SIZE - 1), top}))
        tables = [self._even_rows(lengths, choice) for choice in choices]
        return min(tables, key=lambda table: computed_tokens(self.steps(lengths, table)))

    def _even_rows(self, lengths: np.ndarray, ends: Sequence[int]) -> Table:
        """Shapes of the given lengths, with the pairs of each shared evenly among as many steps as they need."""
        tokens = self._step_tokens(lengths)
        shapes: list[Shape] = []
        taken = 0
        for length, shorter in zip(reversed(ends), [*reversed(ends[:-1]), 0], strict=True):
            pairs = max(int(np.count_nonzero(lengths > shorter)) - taken, 1)
            rows = self._rows(length, tokens)
            steps = -(-pairs // rows)
            even = -(-pairs // steps)
            shapes.append(Shape(-(-even // self.multiple) * self.multiple, length))
            taken += steps * shapes[-1].rows
        return tuple(reversed(shapes))

    def covering(self, table: Table, lengths: np.ndarray) -> Table:
        """The table, with one more shape where a pair is longer than its longest."""
        if lengths.max() <= table[-1].length:
            return table
        rows = max(table[-1].tokens // self.limit // self.multiple, 1) * self.multiple
        return *table, Shape(rows, self.limit)

    def steps(self, lengths: np.ndarray, table: Table, *, fixed: bool = False) -> list[Step]:
        """Cut pairs into steps, the longest first. None may be longer than the last of `table`.

        The last step has fewer rows where few are left; not if the table is `fixed`: then nothing but its shapes has
        to be compiled.
        """
        order = np.argsort(-lengths, kind="stable")
        ends = np.asarray([shape.length for shape in table])
        steps = []
        start = 0
        while start < len(order):
            shape = table[np.searchsorted(ends, lengths[order[start]])]
            pairs = order[start : start + shape.rows]
            if len(pairs) < shape.rows * NEARLY_FULL and not fixed:
                rows = self.multiple * _power_of_two_at_least(-(-len(pairs) // self.multiple))
                shape = Shape(min(rows, shape.rows), shape.length)
            steps.append(Step(pairs, shape))
            start += len(pairs)
        return steps

    def _tokens_above_budget(self, shape: Shape) -> int:
        return shape.tokens - max(self.budget, self.multiple * shape.length)

    def _rows(self, length: int, tokens: int) -> int:
        return max(tokens // length // self.multiple, 1) * self.multiple

    def _step_tokens(self, lengths: np.ndarray) -> int:
        """Tokens of a step: the largest of a few sizes that still makes many steps, so that the empty rows of the last
        one are a small share."""
        total = int(lengths.sum())
        tokens = self.max_step_tokens
        while tokens > MIN_STEP_TOKENS and total < 32 * tokens * self.multiple:
            tokens //= 4
        return min(tokens * self.multiple, self.budget)


def max_step_tokens(platform: str, width: int) -> int:
    """Tokens that a step of a model of this width (hidden size) should have on one device at the most."""
    if platform != "cpu":
        return MAX_STEP_TOKENS
    return next(tokens for limit, tokens in MAX_STEP_TOKENS_ON_CPU.items() if width <= limit)


def computed_tokens(steps: Sequence[Step]) -> int:
    """Rows times length, over all steps."""
    return sum(step.shape.tokens for step in steps)


def fit_lengths(lengths: np.ndarray, top: int, size: int) -> list[int]:
    """At most `size` lengths up to `top` that pad these pairs least."""
    candidates = np.append(np.arange(GRID, top, GRID), top)
    count = np.searchsorted(np.sort(lengths), candidates, side="right").astype(np.float64)
    # cost[j]: tokens computed for all pairs of at most candidates[j] tokens, with candidates[j] in the table.
    cost = count * candidates
    positions = np.arange(len(candidates))
    choices = []
    for _ in range(size - 1):
        extended = cost[:, None] + (count[None, :] - count[:, None]) * candidates[None, :]
        extended[positions[:, None] >= positions[None, :]] = np.inf
        best = extended.argmin(axis=0)
        improved = extended[best, positions]
        choices.append(np.where(improved < cost, best, -1))
        cost = np.minimum(improved, cost)
    table = [len(candidates) - 1]
    for choice in reversed(choices):
        if choice[table[-1]] >= 0:
            table.append(int(choice[table[-1]]))
    return [int(candidates[j]) for j in reversed(table)]


def _power_of_two_at_least(number: int) -> int:
    return 1 << (number - 1).bit_length()
