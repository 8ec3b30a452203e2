"""LayerWiseFlaxLLMReranker: which layers are scored, and how the scores are given."""

import numpy as np
import pytest
from reference_cases import CASES, load_case

from flax_rerank import FlaxAutoReranker, LayerWiseFlaxLLMReranker

NAME = "layerwise-minicpm"
# Of one length or nearly so: one compiled shape for each set of layers.
PAIRS = [load_case(NAME).pairs[i] for i in (0, 2, 5)]


@pytest.fixture
def model(reranker):
    return reranker(NAME)


@pytest.fixture
def single(model):
    """The scores of one layer, asked for alone."""
    return lambda layer: model.compute_score(PAIRS, cutoff_layers=layer)


def test_order_and_repeats_are_honoured(model, single):
    scores = model.compute_score(PAIRS, cutoff_layers=[6, 2, 2, 4])
    assert len(scores) == 4
    for of_layer, layer in zip(scores, (6, 2, 2, 4), strict=True):
        np.testing.assert_allclose(of_layer, single(layer), rtol=0, atol=1e-5)
    assert scores[1] == scores[2]
    for other in (0, 3):
        assert np.abs(np.subtract(scores[1], scores[other])).max() > 1e-2


def test_an_unsorted_request_is_the_sorted_one_in_another_order(model):
    two, four, six = model.compute_score(PAIRS, cutoff_layers=[2, 4, 6])
    assert model.compute_score(PAIRS, cutoff_layers=[4, 6, 2]) == [four, six, two]
    assert model.compute_score(PAIRS, cutoff_layers=(6, 6, 4, 2)) == [six, six, four, two]


def test_one_layer_gives_a_flat_list_whether_int_or_list(model, single):
    flat = single(4)
    assert [type(score) for score in flat] == [float] * len(PAIRS)
    assert model.compute_score(PAIRS, cutoff_layers=[4]) == flat


def test_one_pair_and_several_layers_give_a_list_for_each_layer(model, single):
    scores = model.compute_score(PAIRS[0], cutoff_layers=[6, 4, 2])
    np.testing.assert_allclose(scores, [single(layer)[:1] for layer in (6, 4, 2)], rtol=0, atol=1e-5)


def test_no_pairs_give_an_empty_list_for_each_layer(model):
    assert model.compute_score([], cutoff_layers=[4, 2]) == [[], []]
    assert model.compute_score([], cutoff_layers=4) == []
    assert {layer: len(scores) for layer, scores in model.score([], cutoff_layers=[4, 2]).scores.items()} == {
        4: 0,
        2: 0,
    }


def test_the_last_layer_is_the_default(model, single):
    assert model.compute_score(PAIRS) == single(6)


def test_a_call_overrides_the_constructor(reranker, single):
    model = reranker(NAME, {"cutoff_layers": [4, 2]})
    four, two = model.compute_score(PAIRS)
    np.testing.assert_allclose([four, two], [single(4), single(2)], rtol=0, atol=1e-5)
    assert model.compute_score(PAIRS, cutoff_layers=6) == single(6)


def test_score_is_keyed_by_layer(model, single):
    output = model.score(PAIRS, cutoff_layers=[6, 2, 4, 6])
    assert list(output.scores) == [6, 2, 4]
    for layer, scores in output.scores.items():
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, single(layer), rtol=0, atol=1e-5)
    assert list(model.score(PAIRS, cutoff_layers=4).scores) == [4]
    assert output.tokens.tolist() == [len(load_case(NAME).runs[0]["input_ids"][i]) for i in (0, 2, 5)]


def test_normalised_scores_of_all_layers_are_sigmoids(model):
    logits = np.array(model.compute_score(PAIRS, cutoff_layers=[2, 4, 6]))
    probabilities = model.compute_score(PAIRS, cutoff_layers=[2, 4, 6], normalize=True)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), rtol=1e-9)


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([1], r"\[1\].*not after \[1\]"),
        ([2, 7], r"\[2, 7\].*not after \[7\]"),
        (0, r"\[0\].*not after \[0\]"),
        (-1, r"\[-1\].*not after \[-1\]"),
        ([], r"\[\].*name at least one"),
    ],
)
def test_layers_without_a_score_are_refused_with_the_range(model, layers, named):
    with pytest.raises(ValueError, match=named) as error:
        model.compute_score(PAIRS, cutoff_layers=layers)
    assert "layers 2 to 6" in str(error.value)


def test_the_constructor_refuses_layers_without_a_score():
    with pytest.raises(ValueError, match=r"cutoff_layers \[8\]: the model has scores after layers 2 to 6"):
        FlaxAutoReranker.from_finetuned(str(CASES / NAME), cutoff_layers=[8])


def test_rank_takes_one_layer_only(model):
    with pytest.raises(ValueError, match="one cutoff layer"):
        model.rank(PAIRS[0][0], [passage for _, passage in PAIRS], cutoff_layers=[2, 4, 6])


def test_arguments_that_the_class_does_not_have_are_named(model):
    with pytest.raises(TypeError, match="compress_ratio"):
        model.compute_score(PAIRS, compress_ratio=2)
    with pytest.raises(TypeError, match="head_index"):
        LayerWiseFlaxLLMReranker(str(CASES / NAME), head_index="layer")


def test_each_layer_has_a_head_of_one_row(model):
    assert model.model.readout.layers == (2, 3, 4, 5, 6)
    assert model.model.head[...].shape == (5, 36)
