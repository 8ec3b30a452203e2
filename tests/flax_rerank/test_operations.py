"""The analytic count of operations, by hand and against what the models compute."""

import dataclasses
import math

import jax
import pytest
from reference_cases import CASES

from flax_rerank.models.attention import scores_of
from flax_rerank.operations import Sizes, compress_pair, count_work, passes, sizes_of, visible_scores
from flax_rerank.planning.abstract import abstract_scorer
from flax_rerank.planning.published import find_spec
from flax_rerank.planning.topology import find_topology
from flax_rerank.planning.workload import longest

ENCODER = Sizes(
    layers=2,
    hidden=4,
    heads=2,
    kv_heads=2,
    head_dim=2,
    intermediate=8,
    mlp_matrices=2,
    causal=False,
    windows=(0, 0),
)
# Queries are 8 wide, keys and values 4.
DECODER = dataclasses.replace(ENCODER, layers=4, kv_heads=1, head_dim=4, mlp_matrices=3, causal=True, windows=(0,) * 4)
OUTPUTS, INPUTS = 2 * 4 * (2 * 8 + 3 * 8), 2 * 4 * 2 * 4


def test_of_the_last_layer_one_tokens_output_is_needed():
    # Layer 1: 4 projections and 2 products of the feed-forward for 3 tokens, which attend to 3. Layer 2: keys and
    # values for 3 tokens, all else for one.
    linear = 2 * 3 * (4 * 4 * 4 + 2 * 4 * 8) + 2 * (3 * 2 * 4 * 4 + 2 * 4 * 4 + 2 * 4 * 8)
    work = count_work(ENCODER, 3)
    assert work.operations == linear + 4 * 4 * (3 * 3 + 1 * 3)
    assert work.weights == 2 * (4 * 4 * 4 + 2 * 4 * 8)
    assert work.scores == 2 * (3 * 3 + 3)


def test_a_token_of_a_decoder_sees_itself_and_those_before_it():
    expected = 3 * INPUTS + 3 * OUTPUTS + 4 * 8 * 6 + 3 * INPUTS + OUTPUTS + 4 * 8 * 3
    assert count_work(DECODER, 3, layers=2).operations == expected


def test_compressed_passages_make_the_row_shorter():
    # Before layer 1, five tokens of the passage become three.
    compressed = compress_pair(8, 5, [1], 2)
    expected = 8 * (INPUTS + OUTPUTS) + 4 * 8 * 36 + 6 * INPUTS + OUTPUTS + 4 * 8 * 6
    assert count_work(DECODER, 8, 2, compressed).operations == expected
    assert compress_pair(20, 9, [1, 3], 4) == [(1, 14), (3, 12)]
    assert [each.length for each in passes(DECODER, 20, 4, compress_pair(20, 9, [1, 3], 4))] == [20, 14, 14, 12]


@pytest.mark.parametrize(("causal", "window"), [(False, 0), (False, 3), (True, 0), (True, 3), (True, 9)])
def test_visible_scores_are_those_of_the_mask(causal, window):
    visible = [
        1
        for query in range(7)
        for key in range(7)
        if (key <= query or not causal) and (window == 0 or abs(query - key) < window)
    ]
    assert visible_scores(7, causal, window) == len(visible)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("bge-reranker-base", {}),
        ("bge-reranker-large", {}),
        ("bge-reranker-v2-m3", {}),
        ("jinaai/jina-reranker-v1-turbo-en", {}),
        ("bge-reranker-v2-gemma", {}),
        ("bge-reranker-v2-minicpm-layerwise", {"cutoff_layers": [28]}),
        (
            "bge-reranker-v2.5-gemma2-lightweight",
            {"cutoff_layers": [25], "compress_layers": [8], "compress_ratio": 2},
        ),
    ],
)
def test_the_count_is_that_of_the_traced_model(name, arguments):
    """All products but those of heads and of compression, at the published sizes."""
    scorer = abstract_scorer(find_spec(name, **arguments), find_topology("cpu:1"))
    sizes = sizes_of(scorer.spec.config, scorer.spec.readout)
    weights = [each for each in scorer.params.values() if len(each.shape) == 3]
    assert (sizes.key_value_weights + sizes.other_weights) * sizes.layers == sum(math.prod(w.shape) for w in weights)

    pairs = longest(8).shard(scorer.spec)
    prepared = scorer.plan(pairs)
    shape = prepared.steps[0].shape
    readout, compression = prepared.call.static(shape)
    compressed = compression.at if compression else ()
    assert (compressed != ()) == ("compress_layers" in arguments)
    expected = shape.rows * count_work(sizes, shape.length, readout.layers[-1], compressed, scores_of).operations
    found = products(scorer.trace(shape, (readout, compression)).jaxpr, 1)
    assert expected <= found
    assert found == pytest.approx(expected, rel=1e-3)


def test_of_a_decoder_that_runs_one_step_keys_and_values_of_all_tokens_count():
    scorer = abstract_scorer(find_spec(str(CASES / "monot5")), find_topology("cpu:1"))
    sizes = sizes_of(scorer.spec.config, scorer.spec.readout)
    assert [each.outputs for each in passes(sizes, 512)] == [512, 512, 1, 1]
    prepared = scorer.plan(longest(8).shard(scorer.spec))
    shape = prepared.steps[0].shape
    found = products(scorer.trace(shape, prepared.call.static(shape)).jaxpr, 1)
    assert found == pytest.approx(shape.rows * count_work(sizes, shape.length).operations, rel=1e-3)


def products(jaxpr, times):
    """Operations of the matrix products of a traced function."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            left, result = equation.invars[0].aval, equation.outvars[0].aval
            inner = math.prod(left.shape[axis] for axis in equation.params["dimension_numbers"][0][0])
            total += times * 2 * math.prod(result.shape) * inner
        trips = times * equation.params.get("length", 1)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns")):
            inside = getattr(value, "jaxpr", value)
            if hasattr(inside, "eqns"):
                total += products(inside, trips)
    return total
