"""What pairs begin with alike is computed once: found in their token ids, and shared where it pays.

Pairs of a query share all that comes before the passage; all pairs share what a prompt format begins with. Prefixes
are computed in blocks of `Shape.prefixes`. The pairs of a block are cut into steps by what is left of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from flax_rerank.batching import Planner, Shape, Step, Table
from flax_rerank.models.attention import scores_of
from flax_rerank.operations import Sizes, count_work
from flax_rerank.rerankers.call import Call
from flax_rerank.text.pairs import Prefixes, TokenizedPairs

# Prefixes are shared where that takes at most this part of the operations, since it compiles other programs.
PAYS = 0.9
# A step reads all weights, which takes as long as to compute so many tokens.
TOKENS_OF_A_STEP = 256
# Numbers in the keys and values of a block of prefixes: half a GiB in float32.
MOST_NUMBERS = 1 << 27
SHORTEST = 16

Plan = tuple[TokenizedPairs, Table, list[Step]]


def share_prefixes(planner: Planner, plan: Plan, chosen: np.ndarray, known: Sequence[Table], call: Call) -> Plan:
    """The plan that shares prefixes, if it takes clearly fewer operations than one that does not.

    Args:
        planner: what made that plan.
        plan: pairs, table and steps.
        chosen: int64, the pairs that are scored, of which no two are equal.
        known: tables of earlier calls.
    """
    pairs, sizes = plan[0], call.sizes
    if sizes is None or pairs.queries is None:
        return plan
    layers = call.readout.layers[-1]
    plans = [plan]
    for prefixes in find_prefixes(pairs, chosen, call.readout.pad_token):
        lengths = sorted({_rounded(max(length, SHORTEST)) for length in prefixes.lengths})
        size = max(lengths, key=lambda length: _saved(prefixes, chosen, length))
        if _saved(prefixes, chosen, size) > 0:
            table = _choose(planner, pairs, prefixes, chosen, size, known, sizes)
            plans.append(_cut(planner, pairs, prefixes, chosen, table))
    best = min(plans, key=lambda each: _operations(each, sizes, layers))
    return best if _operations(best, sizes, layers) <= PAYS * _operations(plan, sizes, layers) else plan


def share_as_planned(planner: Planner, pairs: TokenizedPairs, chosen: np.ndarray, table: Table, call: Call) -> Plan:
    """The plan that shares prefixes as an earlier one did, whose table it keeps.

    Raises:
        ValueError: the call shares none.
    """
    if call.sizes is None:
        raise ValueError("the table is that of steps that share prefixes, which this call does not: give another one")
    found = find_prefixes(pairs, chosen, call.readout.pad_token)
    prefixes = max(found, key=lambda prefixes: _saved(prefixes, chosen, table[0].prefix_length))
    return _cut(planner, pairs, prefixes, chosen, table, fixed=True)


def find_prefixes(pairs: TokenizedPairs, chosen: np.ndarray, pad_token: int | None) -> Iterator[Prefixes]:
    """One prefix of all pairs; and one of each query, where queries with one pair share theirs.

    Args:
        pad_token: a token that is not scored; see `Readout`.
    """
    assert pairs.queries is not None
    _, query, count = np.unique(pairs.queries[chosen], return_inverse=True, return_counts=True)
    groupings = [np.zeros(len(chosen), np.int64)]
    if len(count) > 1 and count.max() > 1:
        groupings.append(np.where(count[query] > 1, query + 1, 0))
    for groups in groupings:
        _, first, number = np.unique(groups, return_index=True, return_inverse=True)
        ids = [pairs.ids(pair) for pair in chosen[first]]
        lengths = np.fromiter(map(len, ids), np.int32, len(ids))
        for pair, group in zip(chosen, number, strict=True):
            lengths[group] = _common(ids[group][: lengths[group]], pairs.ids(pair), pad_token)
        of_pair = np.zeros(len(pairs), np.int64)
        of_pair[chosen] = number
        yield Prefixes(of_pair, chosen[first], lengths)


def _common(prefix: np.ndarray, ids: np.ndarray, pad_token: int | None) -> int:
    """With how many tokens of the prefix a pair begins, before the token that is scored."""
    scored = len(ids) - 1 if pad_token is None else int(np.flatnonzero(ids != pad_token)[-1:].sum())
    length = min(len(prefix), scored)
    different = np.flatnonzero(prefix[:length] != ids[:length])
    return int(different[0]) if len(different) else length


def _rounded(number: int) -> int:
    """The number, rounded up to one of four in each doubling (8, 10, 12, 14, 16, 20, ...): few are compiled."""
    grid = max((1 << (int(number) - 1).bit_length()) // 8, 1)
    return -(-int(number) // grid) * grid


def _saved(prefixes: Prefixes, chosen: np.ndarray, size: int) -> int:
    """Tokens that need not be computed, if pairs share the first `size` tokens at most."""
    return int(np.minimum(prefixes.lengths, size)[prefixes.of_pair[chosen]].sum()) - size * len(prefixes.lengths)


def _choose(
    planner: Planner,
    pairs: TokenizedPairs,
    prefixes: Prefixes,
    chosen: np.ndarray,
    size: int,
    known: Sequence[Table],
    sizes: Sizes,
) -> Table:
    """The table for what is left of pairs after `size` tokens of their prefixes at most."""
    count = len(prefixes.lengths)
    at_once = max(MOST_NUMBERS // (2 * sizes.layers * size * sizes.kv_heads * sizes.head_dim), 1)
    blocks = -(-count // at_once)
    rows = -(-_rounded(-(-count // blocks)) // planner.multiple) * planner.multiple
    same = [table for table in known if table[0][-2:] == (rows, size)]
    left = pairs.lengths[chosen] - np.minimum(prefixes.lengths, size)[prefixes.of_pair[chosen]]
    return tuple(shape._replace(prefixes=rows, prefix_length=size) for shape in planner.choose(left, same))


def _cut(
    planner: Planner,
    pairs: TokenizedPairs,
    prefixes: Prefixes,
    chosen: np.ndarray,
    table: Table,
    *,
    fixed: bool = False,
) -> Plan:
    """The plan that shares as many tokens of prefixes as the table has room for."""
    prefixes = replace(prefixes, lengths=np.minimum(prefixes.lengths, table[0].prefix_length))
    left = pairs.lengths[chosen] - prefixes.lengths[prefixes.of_pair[chosen]]
    table = planner.covering(table, left)
    block = prefixes.of_pair[chosen] // table[0].prefixes
    members = [np.flatnonzero(block == each) for each in np.unique(block)]
    steps = [
        Step(chosen[some[step.pairs]], step.shape)
        for some in members
        # The last steps of many blocks would need many shapes.
        for step in planner.steps(left[some], table, fixed=fixed or len(members) > 1)
    ]
    return replace(pairs, prefixes=prefixes), table, steps


def _operations(plan: Plan, sizes: Sizes, layers: int) -> int:
    """Operations of steps and prefixes, and what could be computed while the weights are read for each of them."""
    pairs, _, steps = plan

    def work(shape: Shape) -> int:
        row = count_work(sizes, shape.length, layers, count_scores=scores_of, before=shape.prefix_length)
        return shape.rows * row.operations + 2 * TOKENS_OF_A_STEP * row.weights

    return sum(map(work, [*(step.shape for step in steps), *prefix_shapes(pairs, steps)]))


def prefix_shapes(pairs: TokenizedPairs, steps: Sequence[Step]) -> list[Shape]:
    """Rows and length of each block of prefixes that steps take."""
    if pairs.prefixes is None:
        return []
    found = {pairs.prefixes.block(step.pairs[0], step.shape.prefixes): step.shape for step in steps}
    return [Shape(shape.prefixes, shape.prefix_length) for shape in found.values()]
