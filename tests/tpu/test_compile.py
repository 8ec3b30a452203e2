"""Every published model at its true shape, compiled for TPU slices: it fits, and its program is clean."""

import time
from dataclasses import dataclass

import pytest

from flax_rerank.planning import hlo
from flax_rerank.planning.abstract import find_model, weightless_reranker
from flax_rerank.planning.analysis import copies_of
from flax_rerank.planning.plan import MeshPlan, make_plan
from flax_rerank.planning.step import StepPlan
from flax_rerank.planning.topology import find_topology
from flax_rerank.planning.workload import longest
from flax_rerank.sharding import ShardingRules

pytestmark = pytest.mark.tpu_compile

GIB = 2**30
LIGHTWEIGHT = "bge-reranker-v2.5-gemma2-lightweight"
LAYERWISE = "bge-reranker-v2-minicpm-layerwise"
ENCODERS = ("bge-reranker-base", "bge-reranker-large", "bge-reranker-v2-m3")
MODELS = (*ENCODERS, "bge-reranker-v2-gemma", LAYERWISE, LIGHTWEIGHT)
ARGUMENTS = {
    LAYERWISE: {"cutoff_layers": [28]},
    LIGHTWEIGHT: {"cutoff_layers": [25], "compress_layers": [8], "compress_ratio": 2},
}
TOPOLOGIES = ("v5e:2x2", "v5e:2x4", "v6e:2x2")
MEMORY = {"v5e": 15.75 * GIB, "v6e": 31.25 * GIB}


@dataclass(frozen=True)
class Compiled:
    """The step that most of the work is in, on the mesh that the plan picks."""

    name: str
    topology: str
    chips: int
    best: MeshPlan
    step: StepPlan


def expected_mesh(name, topology):
    chips = find_topology(topology).chips
    return f"data={chips // 2},model=2" if (name, topology[:3]) == (LIGHTWEIGHT, "v5e") else f"data={chips}"


# Of a module, so that the tests of a program come one after the other and compile it once.
@pytest.fixture(scope="module", params=[(name, topology) for name in MODELS for topology in TOPOLOGIES], ids="-".join)
def compiled(request):
    name, topology = request.param
    # On v6e the bound of the encoders is not the matrix products, and the plan tries all meshes: once will do.
    told = name in ENCODERS[1:] and topology.startswith("v6e")
    mesh = expected_mesh(name, topology) if told else None
    devices = find_topology(topology)
    found = make_plan(find_model(name), devices, longest(None), mesh=mesh, dtype="bfloat16", **ARGUMENTS.get(name, {}))
    ((step, _),) = found.best.steps.values()
    return Compiled(name, topology, devices.chips, found.best, step)


def weightless(name, topology, mesh, **more):
    return weightless_reranker(
        find_model(name), find_topology(topology), mesh, dtype="bfloat16", **ARGUMENTS.get(name, {}), **more
    )


def test_it_fits_on_the_mesh_that_the_plan_picks(compiled):
    assert compiled.best.mesh == expected_mesh(compiled.name, compiled.topology)
    assert compiled.best.parameter_bytes <= compiled.step.memory.arguments
    assert compiled.step.memory.total < MEMORY[compiled.topology[:3]]


def test_no_weight_is_copied_or_cut_out_of_its_stack(compiled):
    replicated = any("vocabulary" in note for note in compiled.best.notes)
    rules = ShardingRules(vocab=None) if replicated else ShardingRules()
    model = weightless(compiled.name, compiled.topology, compiled.best.mesh, rules=rules)
    shards = [each.sharding.shard_shape(each.shape) for each in model.parameters]
    stacks = [shape for shape in shards if len(shape) == 3]
    assert len(stacks) >= 6
    # Neither the whole stack of the layers' matrices nor one layer's.
    assert copies_of(hlo.parse(compiled.step.text), [*stacks, *(shape[1:] for shape in stacks)]) == []


def test_collectives_are_those_of_tensor_parallelism(compiled):
    collectives = compiled.step.counts.collectives
    if "model" not in compiled.best.mesh:
        assert collectives == ()
        return
    assert {each.kind for each in collectives} == {"all-reduce"}
    in_loops = [each for each in collectives if "/while/body/" in each.source]
    # Two for each layer. There are two loops, before the compression and after it; the last layer is in none.
    assert sorted(each.times for each in in_loops) == [8, 8, 16, 16]
    of_embedding, *of_last_layer = (each for each in collectives if each not in in_loops)
    assert "take" in of_embedding.source
    assert len(of_last_layer) == 2
    # It sums the last token's state alone.
    rows = compiled.step.shape.rows // (compiled.chips // 2)
    assert max(each.operand_bytes for each in of_last_layer) <= 4 * rows * 3584


def test_layers_multiply_in_bfloat16(compiled):
    counts = compiled.step.counts
    wide = [each for each in counts.products if "f32" in each.dtypes]
    # Only heads are in float32: of one token a row, they are less than the last layer's products.
    assert all(each.times == 1 for each in wide)
    assert sum(each.flops for each in wide) < 3e-5 * counts.flops
    assert len([each for each in counts.products if "bf16" in each.dtypes]) >= 12


def test_attention_is_by_the_kernel(compiled):
    kernels = [each for each in compiled.step.counts.products if each.by_kernel]
    layers = weightless(compiled.name, "cpu:1", "data=1", rules=ShardingRules()).model.config.num_hidden_layers
    asked = ARGUMENTS.get(compiled.name, {}).get("cutoff_layers", [layers])[0]
    # In all layers but the last, where one token attends.
    assert sum(each.times for each in kernels) == asked - 1


def test_flops_are_those_of_the_architecture(compiled):
    expected = flops_of_the_architecture(compiled.name, compiled.step.shape) / compiled.chips
    assert compiled.step.counts.flops == pytest.approx(expected, rel=0.02)


def flops_of_the_architecture(name, shape):
    """Of all devices, from the sizes in config.json."""
    model = weightless(name, "cpu:1", "data=1", rules=ShardingRules())
    config = model.model.config
    width, inner = config.hidden_size, config.intermediate_size
    size = getattr(config, "head_dim", width // config.num_attention_heads)
    queries = config.num_attention_heads * size
    keys = getattr(config, "num_key_value_heads", config.num_attention_heads) * size
    matrices = 2 if name in ENCODERS else 3
    other_weights = 2 * width * queries + matrices * width * inner

    def layers(count, length, positions):
        """`positions` of each row go on; keys and values are of all."""
        each = 2 * length * 2 * width * keys + positions * (2 * other_weights + 4 * length * queries)
        return count * shape.rows * each

    if name in ENCODERS:
        return layers(config.num_hidden_layers - 1, shape.length, shape.length) + layers(1, shape.length, 1)
    pairs = longest(None).shard(model)
    options = model.resolve().options(pairs, [shape.length])(shape.length)
    flops, done, length = 0, 0, shape.length
    for layer, shorter in options.get("compressed", ()):
        flops += layers(layer - done, length, length) + 2 * shape.rows * shorter * length * width
        done, length = layer, shorter
    return flops + layers(options["layers"][-1] - 1 - done, length, length) + layers(1, length, 1)


def test_a_batch_is_too_small_to_be_worth_donating(compiled):
    batch = compiled.step.shape.tokens * 4
    assert batch < 1e-3 * compiled.step.memory.arguments
    assert compiled.step.memory.results < 1e-5 * compiled.step.memory.arguments


def test_a_shape_of_42_layers_compiles_in_15_seconds_on_two_cores():
    start = time.process_time()
    found = make_plan(
        find_model(LIGHTWEIGHT),
        find_topology("v5e:2x4"),
        longest(None),
        mesh="data=4,model=2",
        dtype="bfloat16",
        cutoff_layers=[42],
    )
    assert len(found.best.steps) == 1
    # Of the processor, not of the clock: other tests may run beside this one.
    assert time.process_time() - start < 2 * 15


def test_long_passages_fit_a_v5e_chip():
    found = make_plan(
        find_model("bge-reranker-v2-m3"), find_topology("v5e:1x1"), longest(None), max_length=8192, dtype="bfloat16"
    )
    ((step, _),) = found.best.steps.values()
    assert step.shape.length == 8192
    # The scores of one head alone would be 256 MB.
    assert step.memory.temporaries < GIB
    assert step.memory.total < MEMORY["v5e"]


def test_windows_and_softcap_beyond_the_window():
    found = make_plan(
        find_model(LIGHTWEIGHT),
        find_topology("v5e:2x2"),
        longest(None),
        mesh="data=1,model=4",
        dtype="bfloat16",
        cutoff_layers=[9],
        compress_ratio=1,
        max_length=4600,
        attention_softcap="config",
    )
    ((step, _),) = found.best.steps.values()
    kernels = [each for each in step.counts.products if each.by_kernel]
    assert sorted(each.times for each in kernels) == [4, 4]  # with the window and without
    assert kernels[0].flops != kernels[1].flops


def test_a_model_axis_for_heads_that_share_one_key():
    found = make_plan(
        find_model("bge-reranker-v2-gemma"),
        find_topology("v5e:2x2"),
        longest(None),
        mesh="data=1,model=4",
        dtype="bfloat16",
    )
    ((step, _),) = found.best.steps.values()
    assert {each.kind for each in step.counts.collectives} == {"all-reduce"}
    # Of the embedding, and two for each layer: 17 in the loop, and the last.
    assert sorted(each.times for each in step.counts.collectives) == [1, 1, 1, 17, 17]


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5p:2x2x1"])
def test_chips_with_two_cores_are_one_device(topology):
    devices = find_topology(topology)
    found = make_plan(find_model("bge-reranker-base"), devices, longest(None), dtype="bfloat16", max_length=128)
    assert (devices.chips, found.best.mesh) == (4, "data=4")
    ((step, _),) = found.best.steps.values()
    assert step.counts.collectives == ()


@pytest.mark.parametrize(("topology", "nearest"), [("v5e:3x3", "v5e:2x4"), ("v5p:1x1x1", "v5p:2x2x1")])
def test_a_slice_that_libtpu_does_not_know(topology, nearest):
    with pytest.raises(ValueError, match=rf"libtpu knows no topology '{topology}'.* the nearest one is {nearest}"):
        find_topology(topology)
