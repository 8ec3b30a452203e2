"""Every published model at its true shape, compiled for TPU slices: it fits, and its program is clean."""

from functools import cache

import pytest

from flax_rerank.planning import hlo
from flax_rerank.planning.abstract import find_model, weightless_reranker
from flax_rerank.planning.analysis import copies_of
from flax_rerank.planning.plan import Plan, make_plan
from flax_rerank.planning.topology import find_topology
from flax_rerank.planning.workload import longest
from flax_rerank.sharding import ShardingRules

pytestmark = pytest.mark.tpu_compile

GIB = 2**30
ENCODERS = ("bge-reranker-base", "bge-reranker-large", "bge-reranker-v2-m3")
LIGHTWEIGHT = "bge-reranker-v2.5-gemma2-lightweight"
ARGUMENTS = {
    **dict.fromkeys(ENCODERS, {}),
    "bge-reranker-v2-gemma": {},
    "bge-reranker-v2-minicpm-layerwise": {"cutoff_layers": [28]},
    LIGHTWEIGHT: {"cutoff_layers": [25], "compress_layers": [8], "compress_ratio": 2},
}
TOPOLOGIES = ("v5e:2x2", "v5e:2x4", "v6e:2x2")
MEMORY = {"v5e": 15.75 * GIB, "v6e": 31.25 * GIB}
every = pytest.mark.parametrize(("name", "topology"), [(name, slice) for name in ARGUMENTS for slice in TOPOLOGIES])


def expected_mesh(name, topology):
    chips = find_topology(topology).chips
    return f"data={chips // 2},model=2" if (name, topology[:3]) == (LIGHTWEIGHT, "v5e") else f"data={chips}"


@cache
def plan(name, topology, **more) -> Plan:
    # On v6e the bound of the encoders is not the matrix products, and the plan would try all meshes: it is told.
    mesh = expected_mesh(name, topology) if name in ENCODERS and topology.startswith("v6e") else None
    arguments = ARGUMENTS[name] | more
    return make_plan(find_model(name), find_topology(topology), longest(None), mesh=mesh, dtype="bfloat16", **arguments)


def step_of(name, topology):
    ((step, _),) = plan(name, topology).best.steps.values()
    return step


def stacked_shapes(name, topology):
    """The shapes that the layers' matrices have on a device: the whole stack's, and one layer's."""
    found = plan(name, topology)
    rules = ShardingRules(vocab=None) if found.best.notes else ShardingRules()
    model = weightless_reranker(
        find_model(name), find_topology(topology), found.best.mesh, rules, dtype="bfloat16", **ARGUMENTS[name]
    )
    shards = [each.sharding.shard_shape(each.shape) for each in model.parameters]
    stacks = [shape for shape in shards if len(shape) == 3]
    assert len(stacks) >= 6
    return [*stacks, *(shape[1:] for shape in stacks)]


@every
def test_it_fits_on_the_mesh_that_the_plan_picks(name, topology):
    found = plan(name, topology)
    assert found.best.mesh == expected_mesh(name, topology)
    step = step_of(name, topology)
    assert found.best.parameter_bytes <= step.memory.arguments
    assert step.memory.total < MEMORY[topology[:3]]


@every
def test_no_weight_is_copied_or_cut_out_of_its_stack(name, topology):
    program = hlo.parse(step_of(name, topology).text)
    assert copies_of(program, stacked_shapes(name, topology)) == []


@every
def test_collectives_are_those_of_tensor_parallelism(name, topology):
    step, mesh = step_of(name, topology), plan(name, topology).best.mesh
    if "model" not in mesh:
        assert step.counts.collectives == ()
        return
    assert {each.kind for each in step.counts.collectives} == {"all-reduce"}
    in_layers = [each.times for each in step.counts.collectives if "/while/body/" in each.source]
    # Two for each layer; layers run in two loops, before the compression and after it.
    assert sorted(in_layers) == [8, 8, 17, 17]
    others = [each for each in step.counts.collectives if "/while/body/" not in each.source]
    assert [each.times for each in others] == [1]
    assert "take" in others[0].source  # of the embeddings' rows


@every
def test_layers_multiply_in_bfloat16(name, topology):
    products = [each for each in step_of(name, topology).counts.products if each.times > 1]
    assert len(products) >= 6
    assert {dtype for each in products for dtype in each.dtypes} <= {"bf16", "s8", "s32"}


@every
def test_flops_are_those_of_the_architecture(name, topology):
    step, devices = step_of(name, topology), len(find_topology(topology).devices)
    expected = flops_of_the_architecture(name, step.shape) / devices
    assert step.counts.flops == pytest.approx(expected, rel=0.02)


def flops_of_the_architecture(name, shape):
    """Of all devices, from the sizes in config.json."""
    model = weightless_reranker(
        find_model(name), find_topology("cpu:1"), "data=1", ShardingRules(), dtype="bfloat16", **ARGUMENTS[name]
    )
    config = model.model.config
    width, inner = config.hidden_size, config.intermediate_size
    size = getattr(config, "head_dim", width // config.num_attention_heads)
    queries = config.num_attention_heads * size
    keys = getattr(config, "num_key_value_heads", config.num_attention_heads) * size
    matrices = 2 if name in ENCODERS else 3
    weights = 2 * width * queries + 2 * width * keys + matrices * width * inner

    def layers(count, length):
        return count * shape.rows * length * (2 * weights + 4 * length * queries)

    if name in ENCODERS:
        return layers(config.num_hidden_layers, shape.length)
    pairs = longest(None).shard(model)
    options = model.resolve().options(pairs, [shape.length])(shape.length)
    flops, done, length = 0, 0, shape.length
    for layer, shorter in options.get("compressed", ()):
        flops += layers(layer - done, length) + 2 * shape.rows * shorter * length * width
        done, length = layer, shorter
    return flops + layers(options["layers"][-1] - done, length)


def test_a_batch_is_too_small_to_be_worth_donating():
    step = step_of("bge-reranker-base", "v5e:2x2")
    batch = step.shape.rows // 4 * (step.shape.length + 2) * 4
    assert batch < 1e-3 * step.memory.arguments
    assert step.memory.results < 1e-5 * step.memory.arguments


def test_long_passages_fit_a_v5e_chip():
    found = make_plan(
        find_model("bge-reranker-v2-m3"), find_topology("v5e:1x1"), longest(None), max_length=8192, dtype="bfloat16"
    )
    ((step, _),) = found.best.steps.values()
    assert step.shape.length == 8192
    assert step.memory.total < MEMORY["v5e"]
    assert found.best.notes == ()
