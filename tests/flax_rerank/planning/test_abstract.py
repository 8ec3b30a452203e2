import jax
import pytest
from reference_cases import CASES

from flax_rerank.planning.abstract import find_model, weightless_reranker
from flax_rerank.planning.topology import find_topology
from flax_rerank.rerankers import FlaxReranker, LayerWiseFlaxLLMReranker, LightWeightFlaxLLMReranker
from flax_rerank.sharding import ShardingRules

PAIRS = [("what is panda?", "The giant panda is a bear."), ("hi", "Water boils at a lower temperature on a mountain.")]


def weightless(name, mesh="data=8", **arguments):
    return weightless_reranker(find_model(name), find_topology("cpu:8"), mesh, ShardingRules(), **arguments)


@pytest.mark.parametrize(
    ("name", "kind", "gigabytes"),
    [
        ("BAAI/bge-reranker-v2-m3", FlaxReranker, 1.14),
        ("bge-reranker-v2-minicpm-layerwise", LayerWiseFlaxLLMReranker, 5.45),
        ("bge-reranker-v2.5-gemma2-lightweight", LightWeightFlaxLLMReranker, 18.48),
    ],
)
def test_published_models_are_known_by_name(name, kind, gigabytes):
    reranker = weightless(name, dtype="bfloat16")
    assert isinstance(reranker, kind)
    assert reranker.parameter_bytes / 1e9 == pytest.approx(gigabytes, rel=0.01)
    assert all(isinstance(each, jax.ShapeDtypeStruct) for each in reranker.parameters)


def test_a_name_from_elsewhere_is_not_taken_for_a_published_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="bge-reranker-base"):
        find_model(str(tmp_path / "bge-reranker-base"))


def test_parameters_are_shared_as_in_scoring():
    whole = weightless("bge-reranker-v2.5-gemma2-lightweight", dtype="bfloat16").parameter_bytes
    half = weightless("bge-reranker-v2.5-gemma2-lightweight", "data=4,model=2", dtype="bfloat16").parameter_bytes
    assert half / whole == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("case", ["encoder-xlmr", "lightweight-gemma2"])
@pytest.mark.filterwarnings("ignore:'Yes' is")
def test_steps_are_those_of_scoring(case, reranker):
    init = {"compress_layers": [3], "compress_ratio": 2} if case == "lightweight-gemma2" else {}
    loaded = reranker(case, init, devices=8)
    planned = weightless(str(CASES / case), **init)
    prepared, expected = planned.prepare(PAIRS), loaded.prepare(PAIRS)
    assert prepared.table == expected.table
    assert [step.shape for step in prepared.steps] == [step.shape for step in expected.steps]
    shape = prepared.steps[0].shape
    options = prepared.call.options(prepared.pairs, [each.length for each in prepared.table])(shape.length)
    assert options == expected.call.options(expected.pairs, [each.length for each in expected.table])(shape.length)
    programs = [
        each.lower().as_text() for each in (planned.trace(shape, options), loaded._scorer.trace(shape, options))
    ]
    assert programs[0] == programs[1]
