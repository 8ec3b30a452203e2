"""Sequence lengths to a plan of fixed-shape steps.

Every step is a batch of a shape (rows, length) that is compiled once. Lengths come from a short table;
rows follow from a budget of tokens per step. Pairs are sorted by length and taken from the longest: a step
that a length cannot fill is filled with the next shorter pairs, so only the last step has empty rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GRID = 8
TABLE_SIZE = 7
MIN_STEP_TOKENS = 1024
MAX_STEP_TOKENS = 16384
FIT_FROM = 256
GOOD_ENOUGH_PADDING = 0.08


@dataclass(frozen=True)
class Step:
    """One batch: which pairs, padded to `rows` rows of `length` tokens."""

    pairs: np.ndarray
    rows: int
    length: int


def default_table(limit: int) -> tuple[int, ...]:
    """Lengths for jobs too small to fit a table to: 32, 64, 96, 128, 192, 256, 384, ... up to `limit`."""
    lengths = [32, 64]
    while lengths[-1] < limit:
        lengths.append(lengths[-1] * 3 // 2 if _is_power_of_two(lengths[-1]) else lengths[-2] * 2)
    return (*(length for length in lengths if length < limit), limit)


def fit_table(lengths: np.ndarray, limit: int, size: int = TABLE_SIZE) -> tuple[int, ...]:
    """The table of at most `size` lengths that pads `lengths` least, by dynamic programming.

    Table entries are multiples of eight, or `limit` (the most tokens that the model takes).
    """
    top = min(-(-int(lengths.max()) // GRID) * GRID, limit)
    candidates = np.unique(np.append(np.arange(GRID, top, GRID), top))
    count = np.searchsorted(np.sort(lengths), candidates, side="right").astype(np.float64)
    # cost[j]: tokens computed for all pairs of at most candidates[j] tokens, with candidates[j] in the table.
    cost = count * candidates
    choices = []
    for _ in range(size - 1):
        extended = cost[:, None] + (count[None, :] - count[:, None]) * candidates[None, :]
        extended[np.arange(len(candidates))[:, None] >= np.arange(len(candidates))[None, :]] = np.inf
        best = extended.argmin(axis=0)
        improved = extended[best, np.arange(len(candidates))]
        choices.append(np.where(improved < cost, best, -1))
        cost = np.minimum(improved, cost)
    table = [len(candidates) - 1]
    for choice in reversed(choices):
        if choice[table[-1]] >= 0:
            table.append(int(choice[table[-1]]))
    return tuple(int(candidates[j]) for j in reversed(table))


def choose_table(lengths: np.ndarray, limit: int, known: Sequence[tuple[int, ...]] = ()) -> tuple[int, ...]:
    """A table for these pairs: a known one that pads them little, so that nothing is compiled anew, else a
    fitted one for a large job, else the default."""
    longest = int(lengths.max())
    for table in known:
        if table[-1] >= longest and _padding_share(lengths, table) <= GOOD_ENOUGH_PADDING:
            return table
    return fit_table(lengths, limit) if len(lengths) >= FIT_FROM else default_table(limit)


def plan_steps(lengths: np.ndarray, table: Sequence[int], *, budget: int, multiple: int = 1) -> list[Step]:
    """Cut pairs into steps, the longest first.

    Args:
        lengths: tokens of each pair; none above the last of `table`.
        table: ascending lengths that steps may have.
        budget: tokens that a step may compute at the most; at least `multiple` rows are always taken.
        multiple: rows are a multiple of this, the devices on the mesh's data axis.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    tokens = _step_tokens(int(lengths.sum()), budget, multiple)
    steps = []
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        length = int(table[np.searchsorted(table, longest)])
        rows = max(tokens // length // multiple, 1) * multiple
        pairs = order[start : start + rows]
        if len(pairs) < rows:
            rows = multiple * _power_of_two_at_least(-(-len(pairs) // multiple))
        steps.append(Step(pairs, rows, length))
        start += len(pairs)
    return steps


def _step_tokens(total: int, budget: int, multiple: int) -> int:
    """Tokens of a step: the largest of a few sizes that still makes many steps, so that the unused rows of
    the last one are a small share."""
    tokens = MAX_STEP_TOKENS
    while tokens > MIN_STEP_TOKENS and total < 32 * tokens * multiple:
        tokens //= 4
    return min(tokens * multiple, budget)


def _padding_share(lengths: np.ndarray, table: Sequence[int]) -> float:
    padded = np.asarray(table)[np.searchsorted(table, lengths)].sum()
    return 1.0 - float(lengths.sum()) / float(padded)


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _power_of_two_at_least(number: int) -> int:
    return 1 << (number - 1).bit_length()
