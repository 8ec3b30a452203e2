"""The shapes of a server's steps: few enough that all are compiled before the first request."""

from collections.abc import Sequence

import numpy as np

from flax_rerank.batching import MAX_STEP_TOKENS, Planner, Shape, Step, Table

ROWS_GROW = 4
_ONE = np.ones(1, np.int64)


def full_shapes(limit: int, tokens: int, most_around: int, multiple: int) -> Table:
    """Shapes of `tokens` tokens, four to each doubling of the length, up to inputs of `limit` tokens.

    Args:
        limit, most_around, multiple: see `Planner`.
    """
    lengths = [shape.length for shape in Planner(limit, MAX_STEP_TOKENS).default_table(_ONE)]
    return tuple(
        Shape(max(tokens // length // multiple, 1) * multiple, length, min(most_around, length)) for length in lengths
    )


def small_shapes(full: Sequence[Shape], multiple: int) -> Table:
    """Shapes of 1, 4, 16, ... rows (times `multiple`), for the last step of a batch: one to each doubling of the
    length, and the longest."""
    small = []
    for shape in full:
        if shape is not full[-1] and shape.length & (shape.length - 1):
            continue
        rows = multiple
        while rows < shape.rows:
            small.append(shape._replace(rows=rows))
            rows *= ROWS_GROW
    return tuple(small)


def smallest(step: Step, longest: int, shapes: Sequence[Shape]) -> Step:
    """The step in the shape of the fewest tokens that holds its pairs, of which the longest has `longest` tokens."""
    fitting = [shape for shape in shapes if shape.rows >= len(step.pairs) and shape.length >= longest]
    return Step(step.pairs, min([step.shape, *fitting], key=lambda shape: shape.tokens))
