"""Rows of a matrix: of a head with a row for each token, those that score."""

import numpy as np
import pytest

from flax_rerank.convert.rules import Row, Rule, assign, fill

MATRIX = np.arange(15, dtype=np.float32).reshape(5, 3)


class Source:
    """One matrix; `read_rows` are those that were asked for."""

    def __init__(self):
        self.read_rows = []

    def shapes(self):
        return {"lm_head.weight": MATRIX.shape}

    def read(self, name, index=()):
        self.read_rows += range(*index[0].indices(len(MATRIX)))
        return MATRIX[index]


@pytest.mark.parametrize("tokens", [(4,), (4, 1)], ids=["positive", "positive-and-negative"])
def test_of_a_head_the_rows_of_its_tokens_are_read_in_their_order(tokens):
    source, shape = Source(), (len(tokens), 3)
    assignments, faults = assign(
        source.shapes(), {"head": shape}, [Rule("lm_head.weight", "head", Row(tokens, len(MATRIX)))]
    )
    assert faults == []
    head = fill(source, assignments["head"], shape, MATRIX.dtype)
    np.testing.assert_array_equal(head, MATRIX[list(tokens)])
    part = fill(source, assignments["head"], shape, MATRIX.dtype, (slice(len(tokens) - 1, len(tokens)), slice(1, 3)))
    np.testing.assert_array_equal(part, MATRIX[tokens[-1] :, 1:3][:1])
    assert set(source.read_rows) == set(tokens)


def test_a_head_whose_tokens_are_not_known_fits_and_cannot_be_read():
    rule = Rule("lm_head.weight", "head", Row((), len(MATRIX)))
    assert assign(Source().shapes(), {"head": (1, 3)}, [rule])[1] == []
    with pytest.raises(ValueError, match=r"no row of lm_head.weight is chosen: the readout must name the tokens"):
        rule.transform.read(Source(), "lm_head.weight")


def test_rows_of_a_larger_matrix_cannot_be_given_back():
    with pytest.raises(ValueError, match=r"the model has only row \(4, 1\) of 5"):
        Row((4, 1), 5).to_torch(MATRIX[[4, 1]])
