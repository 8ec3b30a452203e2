"""Sequence lengths to a plan of fixed-shape steps.

Every step is a batch of a shape (rows, length) that is compiled once, and the shapes come from a short table. Pairs
are sorted by length and taken from the longest: a step that pairs of its length cannot fill is filled with the next
shorter ones, so that only the last step has empty rows.

Small calls use a table that is always the same. Large ones have theirs fitted to their lengths, and it is kept for
later calls that it serves as well.

Where passages are compressed, shapes also bound the tokens around a passage, which are not. So every shape has one
length after each compression, and one program.
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
SHORTEST = 32
FIT_FROM = 256
AS_GOOD = 1.02
NEARLY_FULL = 0.75


class Shape(NamedTuple):
    """The shape of a batch.

    Attributes:
        rows, length: of the token ids.
        around: tokens of a row before and after its passage, at most; 0 for no bound but the length.
        prefixes, prefix_length: of the prefixes that rows begin with, and which are not in their ids: how many there
            are, and the tokens of each; 0 for none.
    """

    rows: int
    length: int
    around: int = 0
    prefixes: int = 0
    prefix_length: int = 0

    @property
    def tokens(self) -> int:
        """Rows times length."""
        return self.rows * self.length

    def compressed(self, ratio: int, times: int) -> tuple[int, ...]:
        """The lengths after one, two, ... `times` compressions, in which `ratio` tokens of a passage become one."""
        around = self.around or self.length
        passages = [-(-max(self.length - around, 0) // ratio**time) for time in range(1, times + 1)]
        return tuple(min(-(-(around + passage) // GRID) * GRID, self.length) for passage in passages)


Table = tuple[Shape, ...]
Around = np.ndarray | int


@dataclass(frozen=True)
class Step:
    """One batch: which pairs, and its shape."""

    pairs: np.ndarray
    shape: Shape

    def halves(self, multiple: int) -> list["Step"]:
        """The same pairs in steps of half as many rows, which are a multiple of `multiple`."""
        rows = -(-self.shape.rows // (2 * multiple)) * multiple
        shape = self.shape._replace(rows=rows)
        parts = self.pairs[:rows], self.pairs[rows:]
        return [Step(part, shape) for part in parts if len(part) or part is parts[0]]


@dataclass(frozen=True)
class Planner:
    """What bounds a plan.

    Its methods take the pairs' lengths in tokens and, with compression, the tokens around each passage.

    Attributes:
        limit: tokens of the longest input that there can be.
        most_around: of these, tokens around the passage at most; 0 without compression.
        budget: tokens that a step may compute at the most; one row per device is always taken.
        multiple: rows are a multiple of this, the devices on the mesh's data axis.
        max_step_tokens: on each device.
    """

    limit: int
    budget: int
    multiple: int = 1
    max_step_tokens: int = MAX_STEP_TOKENS
    most_around: int = 0

    def choose(self, lengths: np.ndarray, known: Sequence[Table] = (), around: Around = 0) -> Table:
        """The table for these pairs: the default one for few of them; for many a fitted one, unless one of the `known`
        computes hardly more."""
        if len(lengths) < FIT_FROM:
            return self._bounded(self.default_table(lengths), lengths, np.max(around))
        fitted = self._bounded(self.fit_table(lengths), lengths, around)
        new = self.steps(lengths, fitted, around)
        for table in known:
            if bool(table[-1].around) != bool(self.most_around):  # the other one of them compresses passages
                continue
            if not _covers(table, lengths, around) or max(map(self._tokens_above_budget, table)) > 0:
                continue
            steps = self.steps(lengths, table, around)
            if _work(steps) <= AS_GOOD * _work(new) and len(steps) <= 2 * len(new):
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

    def covering(self, table: Table, lengths: np.ndarray, around: Around = 0) -> Table:
        """The table, with one more shape if its last one is too small for a pair."""
        if _covers(table, lengths, around):
            return table
        return *table, _as_large(table[-1], self.limit, self.most_around, self.multiple)

    def steps(self, lengths: np.ndarray, table: Table, around: Around = 0, *, fixed: bool = False) -> list[Step]:
        """Cut pairs into steps, the longest first. All must fit the last shape of `table`.

        The last step has fewer rows where few are left; not if the table is `fixed`: then nothing but its shapes has
        to be compiled.
        """
        ends, arounds = np.asarray([(shape.length, shape.around or shape.length) for shape in table]).T
        # In a table, what fits a shape also fits all later ones.
        first = np.maximum(np.searchsorted(ends, lengths), np.searchsorted(arounds, around))
        order = np.lexsort((-lengths, -first))
        steps = []
        start = 0
        while start < len(order):
            shape = table[first[order[start]]]
            pairs = order[start : start + shape.rows]
            if len(pairs) < shape.rows * NEARLY_FULL and not fixed:
                rows = self.multiple * _power_of_two_at_least(-(-len(pairs) // self.multiple))
                shape = shape._replace(rows=min(rows, shape.rows))
            steps.append(Step(pairs, shape))
            start += len(pairs)
        return steps

    def _bounded(self, table: Table, lengths: np.ndarray, around: Around) -> Table:
        """The table, with bounds on the tokens around a passage that these pairs keep.

        They are rounded up by less than a quarter, so that other pairs seldom need others.
        """
        if not self.most_around:
            return table
        around = np.broadcast_to(around, lengths.shape)

        def bound(length: int) -> int:
            most = int(around[lengths <= length].max(initial=1))
            grid = max(_power_of_two_at_least(most) // 8, GRID)
            return min(-(-most // grid) * grid, self.most_around, length)

        return tuple(shape._replace(around=bound(shape.length)) for shape in table)

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


def extended(table: Table, limit: int, most_around: int, multiple: int) -> Table:
    """A table with a few more shapes, each twice as long as the one before, so that every input fits one of them.

    Args:
        limit, most_around, multiple: see `Planner`.
    """
    while (table[-1].length, table[-1].around) != (limit, most_around):
        length = min(max(2 * table[-1].length, SHORTEST), limit)
        around = min(max(2 * table[-1].around, SHORTEST), most_around)
        table = *table, _as_large(table[-1], length, around, multiple)
    return table


def _as_large(shape: Shape, length: int, around: int, multiple: int) -> Shape:
    """A longer shape with as many tokens, if that many rows are possible."""
    return shape._replace(rows=max(shape.tokens // length // multiple, 1) * multiple, length=length, around=around)


def _work(steps: Sequence[Step]) -> int:
    """What a plan computes: tokens, those that are not compressed twice."""
    return sum(step.shape.tokens + step.shape.rows * step.shape.around for step in steps)


def _covers(table: Table, lengths: np.ndarray, around: Around) -> bool:
    longest = table[-1]
    return lengths.max() <= longest.length and np.max(around) <= (longest.around or longest.length)


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
