"""Whatever is given as a setting: to the constructor, and to a call."""

import math

import pytest
from fuzzing import Outcome, attempt, numbers, odd_values, texts
from hypothesis import strategies as st
from reference_cases import CASES

from flax_rerank.auto import find_spec
from flax_rerank.rerankers.call import resolve
from flax_rerank.sharding import make_mesh

MODELS = ("encoder-bert", "decoder-llama", "layerwise-minicpm", "lightweight-sep")
PAIRS = [("a query", "a passage of some words"), ("another", "short")]
PATHS = ("cache_dir", "peft_path")  # a text may be the name of a model on the hub

plausible = st.one_of(
    st.integers(1, 64),
    st.booleans(),
    st.lists(st.integers(-1, 5), max_size=3),
    st.sampled_from(
        ["float32", "bfloat16", "cpu", "cpu:0", "data=1", "data=1,model=1", "flag-llm", "layer", "{}: {}"]
    ),
)
values = plausible | numbers | texts | odd_values


def some_of(names):
    entry = st.sampled_from(sorted(names)) | st.sampled_from(["max_lenght", "", "self", "devices_"])
    return st.dictionaries(entry, values, max_size=3).filter(
        lambda settings: not any(isinstance(settings.get(name), str) for name in PATHS)
    )


@pytest.mark.parametrize("name", MODELS)
def test_settings_of_the_constructor(fuzz, name):
    known = find_spec(str(CASES / name)).settings

    def check(settings):
        def opened():
            spec = find_spec(str(CASES / name), **settings)
            resolve(spec, spec.settings)
            make_mesh(spec.settings.devices, spec.settings.mesh)
            return spec

        spec, refused = attempt(opened)
        if refused:
            assert any(each in refused for each in (*settings, *vars(known))), (settings, refused)
            return Outcome.REFUSED
        assert all(getattr(spec.settings, each) is not None for each in settings if settings[each] is not None)
        return Outcome.RIGHT

    fuzz(check, some_of(vars(known)), examples=15)


@pytest.mark.parametrize("name", MODELS)
def test_settings_of_a_call(fuzz, reranker, name):
    model = reranker(name, {"max_length": 32})
    harmless = {"batch_size", "show_progress_bar", "use_dataloader", "num_workers"}
    expected = model.compute_score(PAIRS)

    def check(settings):
        scores, refused = attempt(lambda: model.compute_score(PAIRS, **settings))
        if refused:
            assert any(each in refused for each in (*settings, *vars(model.settings))), (settings, refused)
            return Outcome.REFUSED
        columns = scores if isinstance(scores[0], list) else [scores]
        assert all(len(column) == 2 and all(map(math.isfinite, column)) for column in columns)
        if settings.keys() <= harmless:
            assert scores == pytest.approx(expected, abs=1e-4)
        return Outcome.RIGHT

    names = set(model.settings.call.call_names()) - {"max_length", "query_max_length"}
    fuzz(check, some_of(names), examples=8)
