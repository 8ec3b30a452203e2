"""LightWeightFlaxLLMReranker: heads, token compression, and what is refused."""

import shutil

import numpy as np
import pytest
from reference_cases import CASES, load_case
from safetensors.numpy import load_file, save_file

from flax_rerank import FlaxAutoReranker, LightWeightFlaxLLMReranker
from flax_rerank.batching import GRID

NAME = "lightweight-gemma2"
# Of one length or nearly so: one compiled shape for each set of layers.
PAIRS = [load_case(NAME).pairs[i] for i in (1, 9, 11)]


@pytest.fixture
def model(reranker):
    return reranker(NAME)


@pytest.fixture
def by_layer(reranker):
    return reranker(NAME, {"head_index": "layer"})


@pytest.fixture
def first_head_moved(tmp_path):
    """A copy of the case in which the head of layer 4 is that of layer 2, the first one, and the other way round."""
    folder = tmp_path / "moved"
    shutil.copytree(CASES / NAME, folder)
    tensors = load_file(folder / "model.safetensors")
    first, third = "lm_head.0.linear_head.weight", "lm_head.2.linear_head.weight"
    tensors[first], tensors[third] = tensors[third], tensors[first]
    save_file(tensors, folder / "model.safetensors")
    return str(folder)


# ---- heads


def test_the_reference_scores_a_layer_alone_with_the_first_head(model, by_layer, first_head_moved):
    moved = FlaxAutoReranker.from_finetuned(first_head_moved, head_index="layer")
    scores = model.compute_score(PAIRS, cutoff_layers=4)
    np.testing.assert_allclose(scores, moved.compute_score(PAIRS, cutoff_layers=4), rtol=0, atol=1e-6)
    assert np.abs(np.subtract(scores, by_layer.compute_score(PAIRS, cutoff_layers=4))).min() > 1e-3


def test_head_index_layer_takes_the_head_of_a_layer_whatever_else_is_asked(by_layer):
    _, four, _ = by_layer.compute_score(PAIRS, cutoff_layers=[2, 4, 6])
    np.testing.assert_allclose(by_layer.compute_score(PAIRS, cutoff_layers=4), four, rtol=0, atol=1e-5)


def test_the_reference_counts_heads_from_the_first_layer_asked(model, by_layer):
    """So the two agree on the first layer that has a head, and only there if layers are left out."""
    reference, own = (each.compute_score(PAIRS, cutoff_layers=[2, 4, 6]) for each in (model, by_layer))
    np.testing.assert_allclose(reference[0], own[0], rtol=0, atol=1e-6)
    for number in (1, 2):
        assert np.abs(np.subtract(reference[number], own[number])).min() > 1e-3


@pytest.mark.parametrize("head_index", ["reference", "layer"])
def test_unsorted_and_repeated_requests_agree_with_the_sorted_one(reranker, head_index):
    model = reranker(NAME, {"head_index": head_index})
    two, four, six = model.compute_score(PAIRS, cutoff_layers=[2, 4, 6])
    assert model.compute_score(PAIRS, cutoff_layers=[6, 2, 2, 4]) == [six, two, two, four]
    assert list(model.score(PAIRS, cutoff_layers=[6, 2, 2, 4]).scores) == [6, 2, 4]


def test_one_layer_gives_a_flat_list_and_the_last_is_the_default(model):
    flat = model.compute_score(PAIRS, cutoff_layers=6)
    assert [type(score) for score in flat] == [float] * len(PAIRS)
    assert model.compute_score(PAIRS, cutoff_layers=[6]) == flat
    assert model.compute_score(PAIRS) == flat


def test_no_pairs_give_an_empty_list_for_each_layer(model):
    assert model.compute_score([], cutoff_layers=[2, 4, 6]) == [[], [], []]
    assert model.compute_score([], cutoff_layers=4) == []


# ---- attention softcap


def test_a_saved_checkpoint_still_knows_the_softcap_of_the_config(reranker, model, tmp_path):
    capped = reranker(NAME, {"attention_softcap": "config"})
    for number, saved in enumerate((model, capped)):
        saved.save(tmp_path / str(number))
        for choice, expected in (("reference", model), ("config", capped)):
            loaded = FlaxAutoReranker.from_finetuned(
                str(tmp_path / str(number)), attention_softcap=choice, devices="cpu:0", show_progress_bar=False
            )
            assert loaded.compute_score(PAIRS) == expected.compute_score(PAIRS)


def test_the_softcap_of_the_config_changes_scores(reranker, model):
    capped = reranker(NAME, {"attention_softcap": "config"})
    assert model.spec.config.attention_softcap is None
    assert capped.spec.config.attention_softcap == 50.0
    difference = np.subtract(model.compute_score(PAIRS), capped.compute_score(PAIRS))
    assert np.abs(difference).max() > 1e-3


# ---- compression


def test_ratio_1_ignores_compress_layers(model):
    plain = model.compute_score(PAIRS)
    assert model.compute_score(PAIRS, compress_layers=[1, 3], compress_ratio=1) == plain
    assert model.compute_score(PAIRS, compress_layers=[99], compress_ratio=1) == plain


def test_layer_0_compresses_nothing(model):
    plain = model.compute_score(PAIRS)
    assert model.compute_score(PAIRS, compress_layers=[0], compress_ratio=4) == plain
    compressed = model.compute_score(PAIRS, compress_layers=[2], compress_ratio=4)
    assert model.compute_score(PAIRS, compress_layers=[0, 2], compress_ratio=4) == compressed
    assert np.abs(np.subtract(compressed, plain)).min() > 1e-3


def test_a_compression_beyond_the_last_layer_asked_changes_nothing(model):
    plain = model.compute_score(PAIRS, cutoff_layers=4)
    assert model.compute_score(PAIRS, cutoff_layers=4, compress_layers=[4, 5], compress_ratio=2) == plain


def test_compression_of_the_constructor_is_that_of_each_call(reranker, model):
    asked = {"cutoff_layers": 6, "compress_layers": [2], "compress_ratio": 4}
    of_constructor = reranker(NAME, asked)
    assert of_constructor.compute_score(PAIRS) == model.compute_score(PAIRS, **asked)
    assert of_constructor.compute_score(PAIRS, compress_ratio=1) == model.compute_score(PAIRS)


def test_compress_layer_is_the_old_name_of_compress_layers(model):
    asked = {"cutoff_layers": 6, "compress_ratio": 4}
    with pytest.warns(DeprecationWarning, match="compress_layer is the old name of compress_layers"):
        old = model.compute_score(PAIRS, **asked, compress_layer=[2])
    assert old == model.compute_score(PAIRS, **asked, compress_layers=[2])
    with pytest.warns(DeprecationWarning, match="compress_layer is the old name"):
        model.score(PAIRS, **asked, compress_layer=[2])


def test_the_model_is_given_sizes_that_fall_with_each_compression(model, monkeypatch):
    seen = []

    class Recording:
        row_multiple = 1

        def __call__(self, params, pairs, steps, static, **kwargs):
            seen.extend((pairs, step.shape, static(step.shape)[1]) for step in steps)
            return np.zeros((len(pairs), 1), np.float32), steps

    monkeypatch.setattr(model, "_scorer", Recording())
    model.compute_score(PAIRS, compress_layers=[3, 1], compress_ratio=4, cutoff_layers=[6])
    ((pairs, shape, compression),) = seen
    suffix = len(pairs.template.suffix)
    around = pairs.passage_starts + suffix
    once = -(-(pairs.lengths - around) // 4)
    twice = -(-once // 4)
    (first, after_first), (second, after_second) = compression.at
    assert (first, second, compression.ratio, compression.suffix_length) == (1, 3, 4, suffix)
    assert 0 <= shape.around - around.max() < GRID
    assert (around + once).max() <= after_first
    assert (around + twice).max() <= after_second
    assert after_second < after_first < shape.length


# ---- bad input


@pytest.mark.parametrize("ratio", [3, 0, -2, 16])
def test_a_ratio_that_there_is_not_is_refused_with_the_choices(model, ratio):
    with pytest.raises(ValueError, match=rf"compress_ratio {ratio} is not one of 1, 2, 4, 8"):
        model.compute_score(PAIRS, compress_ratio=ratio)


@pytest.mark.parametrize("layer", [99, 6, -1])
def test_a_layer_outside_the_model_is_refused_with_the_range(model, layer):
    with pytest.raises(ValueError, match=rf"compress_layers \[{layer}\]: the model has layers 0 to 5"):
        model.compute_score(PAIRS, compress_layers=[2, layer], compress_ratio=2)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"head_index": "first"}, "head_index is 'first'; it must be 'reference' or 'layer'"),
        ({"attention_softcap": "none"}, "attention_softcap is 'none'; it must be 'reference' or 'config'"),
        ({"cutoff_layers": [1]}, r"cutoff_layers \[1\]: the model has scores after layers 2 to 6"),
        ({"cutoff_layers": []}, "name at least one"),
        ({"compress_ratio": 3}, "compress_ratio 3 is not one of 1, 2, 4, 8"),
        ({"compress_ratio": 2, "compress_layers": [42]}, r"compress_layers \[42\]: the model has layers 0 to 5"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_constructor_refuses_what_calls_refuse(argument, message):
    with pytest.raises(ValueError, match=message):
        FlaxAutoReranker.from_finetuned(str(CASES / NAME), **argument)


def test_the_class_loads_a_checkpoint_itself(by_layer):
    model = LightWeightFlaxLLMReranker(str(CASES / NAME), head_index="layer", devices="cpu:0", show_progress_bar=False)
    assert model.spec.config == by_layer.spec.config
    assert model.compute_score(PAIRS, cutoff_layers=4) == by_layer.compute_score(PAIRS, cutoff_layers=4)


def test_arguments_that_the_class_does_not_have_are_named(model):
    with pytest.raises(TypeError, match="use_dataloader"):
        model.compute_score(PAIRS, use_dataloader=True)
    with pytest.raises(TypeError, match="layerwise"):
        LightWeightFlaxLLMReranker(str(CASES / NAME), layerwise=True)
