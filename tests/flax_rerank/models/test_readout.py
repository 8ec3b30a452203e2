"""Which readouts there are, and which one a call has."""

from dataclasses import asdict

import pytest

from flax_rerank.models.readout import Readout

FIELDS = {"position": "last", "head": "linear", "layers": (2, 4, 6), "heads": (0, 1, 2)}
HEADS = Readout(**FIELDS)


def test_a_call_has_the_layers_asked_in_order_with_their_own_heads_or_those_given():
    assert HEADS.at([6, 2, 6]) == Readout(**FIELDS | {"layers": (2, 6), "heads": (0, 2)})
    assert HEADS.at([6, 2], heads=(0, 1)) == Readout(**FIELDS | {"layers": (2, 6), "heads": (0, 1)})


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([4, 3], r"cutoff_layers \[4, 3\]: the model has scores after layers 2 to 6 in steps of 2, not after \[3\]"),
        ([], r"cutoff_layers \[\]: .* layers 2 to 6 in steps of 2; name at least one"),
    ],
    ids=["without-a-head", "none"],
)
def test_a_layer_without_a_head_is_refused_with_those_that_have_one(layers, message):
    with pytest.raises(ValueError, match=message):
        HEADS.at(layers)


@pytest.mark.parametrize(
    ("changes", "head_rows", "rows"),
    [
        ({}, 3, ((0,), (1,), (2,))),
        ({"tokens": (7,)}, 3, ((0,), (1,), (2,))),
        ({"heads": (0, 0, 0)}, 1, ((0,),) * 3),
        ({"heads": (0, 0, 0), "tokens": (7, 9)}, 2, ((0, 1),) * 3),
        ({"heads": (0, 0, 0), "tokens": (7, 9), "head": "tied"}, 2, ((7, 9),) * 3),
    ],
    ids=["heads", "heads-of-a-token", "one-head", "negative", "tied"],
)
def test_the_rows_of_the_head_and_those_of_each_layer(changes, head_rows, rows):
    readout = Readout(**FIELDS | changes)
    assert readout.head_rows == head_rows
    assert readout.rows == rows


def test_a_tied_head_without_a_token_cannot_score():
    with pytest.raises(ValueError, match="the readout must name its tokens"):
        _ = Readout(**FIELDS | {"head": "tied", "heads": (0, 0, 0)}).rows


def test_lists_from_json_become_tuples():
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(HEADS).items()}
    assert hash(Readout(**fields)) == hash(HEADS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (), "heads": ()}, r"layers \[\] must ascend, with at least one"),
        ({"layers": (4, 2, 6)}, r"layers \[4, 2, 6\] must ascend"),
        ({"heads": (0, 1)}, r"heads \[0, 1\] must name one head for each of the layers \[2, 4, 6\]"),
        ({"tokens": (1, 2, 3)}, r"tokens \[1, 2, 3\]: a score takes one or two"),
        ({"tokens": (1, 2)}, "a negative token cannot be combined with a head for each layer"),
        ({"head": "tied", "tokens": (1,)}, "a tied head cannot be combined with a head for each layer"),
    ],
    ids=["no-layer", "unsorted", "heads", "tokens", "negative", "tied"],
)
def test_values_that_do_not_belong_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Readout(**FIELDS | changes)
