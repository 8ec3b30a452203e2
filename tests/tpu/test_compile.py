"""Every published model at its true shape, compiled for TPU slices: it fits, and its program is clean."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from compiled_programs import copies_of, flops_of, products_of

from flax_rerank.planning import hlo
from flax_rerank.planning.abstract import abstract_scorer
from flax_rerank.planning.plan import MeshPlan, make_plan
from flax_rerank.planning.published import find_spec
from flax_rerank.planning.step import StepPlan
from flax_rerank.planning.topology import find_topology
from flax_rerank.planning.workload import longest
from flax_rerank.sharding import ShardingRules

pytestmark = pytest.mark.tpu_compile

GIB = 2**30
LIGHTWEIGHT = "bge-reranker-v2.5-gemma2-lightweight"
LAYERWISE = "bge-reranker-v2-minicpm-layerwise"
ENCODERS = ("bge-reranker-base", "bge-reranker-large", "bge-reranker-v2-m3")
MODERNBERT = str(Path(__file__).parent / "modernbert-base")  # the sizes of gte-reranker-modernbert-base and others
GTE = str(Path(__file__).parent / "gte-base")  # the sizes of gte-multilingual-reranker-base
QWEN = "Qwen/Qwen3-Reranker-4B"  # for the decoders with a template, which differ from the others in little
MODELS = (*ENCODERS, "bge-reranker-v2-gemma", LAYERWISE, LIGHTWEIGHT)
ARGUMENTS = {
    QWEN: {"max_length": 512},
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
    program: hlo.Computation


def expected_mesh(name, topology):
    chips = find_topology(topology).chips
    return f"data={chips // 2},model=2" if (name, topology[:3]) == (LIGHTWEIGHT, "v5e") else f"data={chips}"


# Of a module, so that the tests of a program come one after the other and compile it once.
@pytest.fixture(
    scope="module",
    params=[
        *((name, topology) for name in MODELS for topology in TOPOLOGIES),
        *((name, "v5e:2x4") for name in (MODERNBERT, QWEN)),
    ],
    ids=lambda param: f"{Path(param[0]).name}-{param[1]}",
)
def compiled(request):
    name, topology = request.param
    # On v6e the bound of the encoders is not the matrix products, and the plan tries all meshes: once will do.
    known = name == QWEN or (name in ENCODERS[1:] and topology.startswith("v6e"))
    mesh = expected_mesh(name, topology) if known else None
    devices = find_topology(topology)
    found = make_plan(find_spec(name, **ARGUMENTS.get(name, {})), devices, longest(None), mesh=mesh)
    ((step, _),) = found.best.steps.values()
    return Compiled(name, topology, devices.chips, found.best, step, hlo.parse(step.compiled.as_text()))


def test_it_fits_on_the_mesh_that_the_plan_picks(compiled):
    assert compiled.best.mesh == expected_mesh(compiled.name, compiled.topology)
    assert compiled.best.parameter_bytes <= compiled.step.memory.arguments
    assert compiled.step.memory.total < MEMORY[compiled.topology[:3]]


def test_no_weight_is_copied_or_cut_out_of_its_stack(compiled):
    replicated = any("vocabulary" in note for note in compiled.best.notes)
    spec = find_spec(compiled.name, sharding_rules=ShardingRules(vocab=None) if replicated else ShardingRules())
    scorer = abstract_scorer(spec, find_topology(compiled.topology), compiled.best.mesh)
    shards = [each.sharding.shard_shape(each.shape) for each in scorer.params.values()]
    stacks = [shape for shape in shards if len(shape) == 3]
    assert len(stacks) >= 6
    # Neither the whole stack of the layers' matrices nor one layer's.
    assert copies_of(compiled.program, [*stacks, *(shape[1:] for shape in stacks)]) == []


def test_collectives_are_those_of_tensor_parallelism(compiled):
    collectives = compiled.step.collectives
    if "model" not in compiled.best.mesh:
        assert collectives == ()
        return
    assert {each.kind for each in collectives} == {"all-reduce"}
    # Two for each layer. There are two loops, before the compression and after it; the last layer is in none, nor is
    # the embedding.
    assert sorted(each.times for each in collectives) == [1, 1, 1, 8, 8, 16, 16]
    *of_last_layer, of_embedding = sorted(each.operand_bytes for each in collectives if each.times == 1)
    # The last layer sums the last token's state alone.
    rows = compiled.step.shape.rows // (compiled.chips // 2)
    assert max(of_last_layer) <= 4 * rows * 3584
    assert of_embedding >= 2 * rows * 3584 * compiled.step.shape.length


def test_layers_multiply_in_bfloat16(compiled):
    products = products_of(compiled.program)
    wide = [each for each in products if "f32" in each.dtypes]
    # Only heads are in float32: of one token a row, they are less than the last layer's products.
    assert all(each.times == 1 for each in wide)
    assert sum(each.flops for each in wide) < 3e-5 * compiled.step.flops
    assert len([each for each in products if "bf16" in each.dtypes]) >= 12


def test_attention_is_by_the_kernel(compiled):
    kernels = [each for each in products_of(compiled.program) if each.by_kernel]
    layers = find_spec(compiled.name).config.num_hidden_layers
    asked = ARGUMENTS.get(compiled.name, {}).get("cutoff_layers", [layers])[0]
    # In all layers but the last, where one token attends.
    assert sum(each.times for each in kernels) == asked - 1


def test_the_compiled_step_computes_what_is_counted(compiled):
    causal = compiled.name not in (*ENCODERS, MODERNBERT)
    assert flops_of(compiled.program, causal=causal) == pytest.approx(compiled.step.flops, rel=0.02)


def test_a_batch_is_too_small_to_be_worth_donating(compiled):
    batch = compiled.step.shape.tokens * 4
    assert batch < 1e-3 * compiled.step.memory.arguments
    assert compiled.step.memory.results < 1e-5 * compiled.step.memory.arguments


def test_a_shape_of_42_layers_compiles_in_15_seconds_on_two_cores():
    start = time.process_time()
    found = make_plan(
        find_spec(LIGHTWEIGHT, cutoff_layers=[42]),
        find_topology("v5e:2x4"),
        longest(None),
        mesh="data=4,model=2",
    )
    assert len(found.best.steps) == 1
    # Of the processor, not of the clock: other tests may run beside this one.
    assert time.process_time() - start < 2 * 15


@pytest.mark.parametrize("name", ["bge-reranker-v2-m3", MODERNBERT, GTE], ids=lambda name: Path(name).name)
def test_long_passages_fit_a_v5e_chip(name):
    found = make_plan(find_spec(name, max_length=8192), find_topology("v5e:1x1"), longest(None))
    ((step, _),) = found.best.steps.values()
    assert step.shape.length == 8192
    # The scores of one head alone would be 256 MB.
    assert step.memory.temporaries < GIB
    assert step.memory.total < MEMORY["v5e"]


def test_windows_and_softcap_beyond_the_window():
    found = make_plan(
        find_spec(LIGHTWEIGHT, cutoff_layers=[9], max_length=4600, attention_softcap="config"),
        find_topology("v5e:2x2"),
        longest(None),
        mesh="data=1,model=4",
    )
    ((step, _),) = found.best.steps.values()
    kernels = [each for each in products_of(hlo.parse(step.compiled.as_text())) if each.by_kernel]
    assert sorted(each.times for each in kernels) == [4, 4]  # with the window and without


def test_a_model_axis_for_heads_that_share_one_key():
    found = make_plan(
        find_spec("bge-reranker-v2-gemma"), find_topology("v5e:2x2"), longest(None), mesh="data=1,model=4"
    )
    ((step, _),) = found.best.steps.values()
    assert {each.kind for each in step.collectives} == {"all-reduce"}
    # Of the embedding, and two for each layer: 17 in the loop, and the last.
    assert sorted(each.times for each in step.collectives) == [1, 1, 1, 17, 17]


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5p:2x2x1"])
def test_chips_with_two_cores_are_one_device(topology):
    devices = find_topology(topology)
    found = make_plan(find_spec("bge-reranker-base", max_length=128), devices, longest(None))
    assert (devices.chips, found.best.mesh) == (4, "data=4")
    ((step, _),) = found.best.steps.values()
    assert step.collectives == ()


@pytest.mark.parametrize(("topology", "nearest"), [("v5e:3x3", "v5e:2x4"), ("v5p:1x1x1", "v5p:2x2x1")])
def test_a_slice_that_libtpu_does_not_know(topology, nearest):
    with pytest.raises(
        ValueError, match=rf"libtpu makes no topology '{topology}'.* the nearest common slice is {nearest}"
    ):
        find_topology(topology)
