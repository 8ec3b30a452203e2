"""The shapes of the server's steps."""

import numpy as np
import pytest

from flax_rerank.batching import Shape, Step
from flax_rerank.serving.shapes import full_shapes, small_shapes, smallest

FULL = full_shapes(515, 1024, 0, 1)
SMALL = small_shapes(FULL, 1)


def test_inputs_of_every_length_fit():
    assert (FULL[0], FULL[-1]) == (Shape(32, 32), Shape(1, 515))
    assert [shape.length for shape in FULL[-4:]] == [384, 448, 512, 515]
    assert set(SMALL) >= {Shape(1, 32), Shape(4, 32), Shape(16, 32), Shape(1, 512)}
    assert len({*FULL, *SMALL}) == 25


def test_rows_are_split_over_the_devices():
    full = full_shapes(515, 8 * 1024, 0, 8)
    assert {shape.rows % 8 for shape in (*full, *small_shapes(full, 8))} == {0}


def test_around_passages_there_is_room_for_every_query():
    assert full_shapes(515, 1024, 387, 1)[-1] == Shape(1, 515, 387)
    assert full_shapes(515, 1024, 387, 1)[0] == Shape(32, 32, 32)


@pytest.mark.parametrize(
    ("pairs", "longest", "expected"),
    [(1, 20, (1, 32)), (3, 60, (4, 64)), (3, 300, (3, 320)), (1, 300, (1, 512))],
)
def test_the_last_step_takes_the_smallest_shape(pairs, longest, expected):
    step = smallest(Step(np.arange(pairs), Shape(3, 320)), longest, SMALL)
    assert step.shape[:2] == expected
