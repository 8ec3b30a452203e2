import jax
import numpy as np
import pytest
from reference_cases import CASES

from flax_rerank.planning.abstract import abstract_scorer
from flax_rerank.planning.published import find_spec
from flax_rerank.planning.topology import find_topology
from flax_rerank.settings import RerankerModelClass
from flax_rerank.text.pairs import tokenize

PAIRS = [("what is panda?", "The giant panda is a bear."), ("hi", "Water boils at a lower temperature on a mountain.")]


@pytest.mark.parametrize(
    ("name", "model_class", "gigabytes"),
    [
        ("BAAI/bge-reranker-v2-m3", RerankerModelClass.ENCODER_ONLY_BASE, 1.14),
        ("bge-reranker-v2-minicpm-layerwise", RerankerModelClass.DECODER_ONLY_LAYERWISE, 5.45),
        ("bge-reranker-v2.5-gemma2-lightweight", RerankerModelClass.DECODER_ONLY_LIGHTWEIGHT, 18.48),
    ],
)
def test_published_models_are_known_by_name(name, model_class, gigabytes):
    spec = find_spec(name, dtype="bfloat16")
    assert spec.model_class is model_class
    scorer = abstract_scorer(spec, find_topology("cpu:8"))
    assert scorer.parameter_bytes / 1e9 == pytest.approx(gigabytes, rel=0.01)
    assert all(isinstance(each, jax.ShapeDtypeStruct) for each in scorer.params.values())


def test_a_name_from_elsewhere_is_not_taken_for_a_published_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="bge-reranker-base"):
        find_spec(str(tmp_path / "bge-reranker-base"))


def test_parameters_are_shared_as_in_scoring():
    spec, topology = find_spec("bge-reranker-v2.5-gemma2-lightweight", dtype="bfloat16"), find_topology("cpu:8")
    whole, half = (abstract_scorer(spec, topology, mesh).parameter_bytes for mesh in ("data=8", "data=4,model=2"))
    assert half / whole == pytest.approx(0.5, rel=1e-3)


def test_the_dtype_is_that_of_the_topologys_platform():
    spec = find_spec("bge-reranker-base")
    assert abstract_scorer(spec, find_topology("h100:1")).dtype.name == "bfloat16"
    assert abstract_scorer(spec, find_topology("cpu:1")).dtype == np.float32


@pytest.mark.parametrize("case", ["encoder-xlmr", "lightweight-gemma2"])
@pytest.mark.filterwarnings("ignore:'Yes' is")
def test_steps_are_those_of_scoring(case, reranker):
    init = {"compress_layers": [3], "compress_ratio": 2} if case == "lightweight-gemma2" else {}
    loaded = reranker(case, init, devices=8)
    expected = loaded.prepare(PAIRS)
    planned = abstract_scorer(find_spec(str(CASES / case), **init), find_topology("cpu:8"))
    settings = planned.spec.settings
    pairs = tokenize(
        PAIRS,
        planned.spec.tokenizer,
        planned.call.template,
        query_instruction=settings.query_instruction,
        passage_instruction=settings.passage_instruction,
    )
    prepared = planned.plan(pairs)
    assert prepared.table == expected.table
    assert [step.shape for step in prepared.steps] == [step.shape for step in expected.steps]
    shape = prepared.steps[0].shape
    static = prepared.call.static(shape)
    assert static == expected.call.static(shape)
    programs = [
        each.lower().as_text()
        for each in (planned.trace(shape, static), loaded._scorer.trace(loaded.params, shape, static))
    ]
    assert programs[0] == programs[1]
