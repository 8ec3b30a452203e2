import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from compiled_programs import flops_of

from flax_rerank.batching import Shape, Step
from flax_rerank.models.attention import scores_of
from flax_rerank.operations import Sizes, count_work
from flax_rerank.planning import hlo
from flax_rerank.planning import plan as planning
from flax_rerank.planning.plan import make_plan, nearest_that_fits, sensible_meshes
from flax_rerank.planning.report import costs
from flax_rerank.planning.step import DoesNotFit, StepPlan, bytes_needed, limits, sizes_on_a_device
from flax_rerank.planning.topology import CHIPS, GIB, find_topology
from flax_rerank.planning.workload import longest
from flax_rerank.sharding import MeshError, ShardingRules, make_mesh

LENGTH, LAYERS = 128, 3
SIZES = Sizes(LAYERS, 256, 4, 4, 64, 1024, 2, causal=False, windows=(0,) * LAYERS)
# Arguments are placed and a step is run, and what the process takes for it is compared with the plan.
RUN = """
import sys, jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from flax_rerank.batching import Shape
from flax_rerank.planning.abstract import abstract_scorer
from flax_rerank.planning.published import find_spec
from flax_rerank.planning.step import plan_step
from flax_rerank.planning.topology import find_topology
from flax_rerank.scoring import empty_batch
from flax_rerank.sharding import ShardingRules, over_data

def status(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))

topology = find_topology("cpu:8")
spec = find_spec(sys.argv[1], sharding_rules=ShardingRules(vocab=None))
scorer = abstract_scorer(spec, topology, "data=2,model=4")
shape = Shape(1024, 32)
step = plan_step(scorer, topology, shape, (scorer.call.readout, None))
before = status("VmRSS")
params = {
    path: jax.device_put(np.full(each.shape, 0.01, each.dtype), each.sharding) for path, each in scorer.params.items()
}
batch = jax.device_put(empty_batch(shape), over_data(scorer.mesh))
jax.block_until_ready((params, batch))
step.compiled(params, batch).block_until_ready()
print(step.memory.total * 8, status("VmHWM") - before)
"""


def test_the_compiled_step_computes_what_is_counted(small):
    plan = make_plan(small(max_length=LENGTH), find_topology("cpu:8"), longest(None), mesh="data=4,model=2")
    ((step, _),) = plan.best.steps.values()
    assert step.shape.length == LENGTH
    assert flops_of(hlo.parse(step.compiled.as_text())) == pytest.approx(step.flops, rel=0.02)
    reductions = [each.times for each in step.collectives if each.kind == "all-reduce"]
    assert reductions.count(LAYERS - 1) == 2


def test_a_mesh_that_splits_nothing_saves_nothing():
    mesh = make_mesh("cpu", "data=2,model=4")
    shared = sizes_on_a_device(SIZES, mesh, ShardingRules())
    assert (shared.hidden, shared.heads, shared.kv_heads, shared.intermediate) == (256, 1, 1, 256)
    assert sizes_on_a_device(SIZES, mesh, ShardingRules(heads=None, kv_heads=None, mlp=None)) == SIZES
    one_key = dataclasses.replace(SIZES, kv_heads=1)
    assert sizes_on_a_device(one_key, mesh, ShardingRules()).kv_heads == 1


def test_the_job_takes_as_long_as_its_steps(small):
    plan = make_plan(small(max_length=LENGTH), find_topology("h100:8"), longest(10**6), price=2.0)
    ((step, per_pair),) = plan.best.steps.values()
    work = count_work(SIZES, LENGTH, count_scores=scores_of)
    assert step.flops == work.operations * step.shape.rows / 8
    assert step.limits["matrix"] == step.flops / CHIPS["h100"].flops
    assert (
        step.limits["memory"] > 2 * (work.weights + work.activations * step.shape.rows / 8) / CHIPS["h100"].bandwidth
    )
    assert plan.hours == pytest.approx(10**6 * per_pair * step.seconds / 3600)
    assert costs(plan)["price"] == pytest.approx(plan.hours * 8 * 2.0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_what_the_program_takes(folder):
    # Kernels that XLA takes for the CPU have workspaces of their own, which are not in the compiler's figure.
    environment = os.environ | {"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type="}
    command = [sys.executable, "-c", RUN, str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    planned, taken = map(int, found.stdout.split())
    assert taken == pytest.approx(planned, rel=0.1)


def test_meshes_share_all_devices():
    assert sensible_meshes(find_topology("cpu:8")) == [
        "data=8",
        "data=4,model=2",
        "data=2,model=4",
        "data=1,model=8",
    ]
    assert sensible_meshes(find_topology("h100:8")) == ["data=8"]


@pytest.fixture
def uncompiled(monkeypatch):
    """Steps of which only the shape is known."""

    def step(scorer, topology, shape, static):
        return StepPlan(shape, 1.0, 1.0, limits(topology, 32, 1.0, 1.0))

    monkeypatch.setattr(planning, "plan_step", step)
    return step


def test_a_vocabulary_that_does_not_divide_is_replicated(small, uncompiled):
    plan = make_plan(small(max_length=LENGTH), find_topology("cpu:8"), longest(None), mesh="data=4,model=2")
    (note,) = plan.best.notes
    assert note.startswith("the vocabulary of 2001 does not divide over data=4,model=2")


def test_meshes_that_heads_do_not_divide_over_are_refused(small, uncompiled):
    plan = make_plan(small(max_length=LENGTH), find_topology("cpu:8"), longest(None))
    assert plan.best.mesh == "data=8"
    reasons = {each.mesh: each.refused for each in plan.others}
    assert reasons["data=1,model=8"].startswith("num_attention_heads is 4, which does not divide over model=8")
    assert reasons["data=4,model=2"] == "not compiled: the machine's speed is not known, and data=8 fits"


@pytest.mark.parametrize(
    ("topology", "mesh", "message"),
    [
        ("cpu:8", "data=3,model=2", "takes 6 devices; there are 8.*Meshes of cpu:8: data=8; data=4,model=2"),
        ("cpu:8", "data=1,model=8", "num_attention_heads is 4.*take model=4.*Meshes of cpu:8"),
        ("h100:8", "data=4,model=2", "GPUs are planned by roofline alone.* take data=8"),
    ],
)
def test_an_impossible_mesh_names_the_possible_ones(small, topology, mesh, message):
    with pytest.raises(MeshError, match=message):
        make_plan(small(), find_topology(topology), longest(None), mesh=mesh)


def test_a_model_that_fits_no_mesh(small):
    tiny = dataclasses.replace(CHIPS["h100"], memory=1e6)
    plan = make_plan(small(), dataclasses.replace(find_topology("h100:8"), chip=tiny), longest(None))
    assert plan.best is None
    assert plan.others[0].refused == "its parameters take 0.01 GiB of a device's 0.00 GiB"


def test_the_nearest_to_a_mesh_that_does_not_fit(small, uncompiled, monkeypatch):
    def fits_when_split(scorer, topology, shape, static):
        if scorer.mesh.shape["model"] == 1:
            raise DoesNotFit(shape, None, 0)
        return uncompiled(scorer, topology, shape, static)

    topology = find_topology("cpu:8")
    monkeypatch.setattr(planning, "plan_step", fits_when_split)
    assert make_plan(small(max_length=64), topology, longest(None), mesh="data=8").best is None
    nearest = nearest_that_fits(small(max_length=64), topology, longest(None), mesh="data=8")
    assert (nearest.topology.name, nearest.best.mesh) == ("cpu:8", "data=4,model=2")
    assert nearest_that_fits(small(), find_topology("h100:1"), longest(None)) is None


def test_steps_that_do_not_fit_are_cut_as_scoring_does(small, uncompiled, monkeypatch):
    compiled = []

    def fits_from_16_rows(scorer, topology, shape, static):
        compiled.append(shape.rows)
        if shape.rows > 16:
            raise DoesNotFit(shape, 3.5 * GIB, topology.chip.memory)
        return uncompiled(scorer, topology, shape, static)

    monkeypatch.setattr(planning, "plan_step", fits_from_16_rows)
    plan = make_plan(small(max_length=LENGTH), find_topology("h100:8"), longest(None))
    assert compiled == [128, 64, 32, 16]
    assert plan.best.notes[0] == (
        "a step of 128 x 128 takes 3.50 GiB of a device's 67.06 GiB: cut into steps of 64 rows, as scoring does"
    )
    ((_, per_pair),) = plan.best.steps.values()
    assert per_pair == pytest.approx(1 / 16, rel=0.01)


def test_the_compilers_figure_is_read():
    assert bytes_needed("Ran out of memory in memory space hbm. Used 22.50G of 15.75G hbm.") == 22.5 * GIB
    assert bytes_needed("memory required for HLO temporaries (512.00M) exceeds available HBM") == 512 * 2**20
    assert bytes_needed("RESOURCE_EXHAUSTED") is None


def test_of_many_shapes_a_few_are_compiled_and_stand_for_the_others():
    shapes = [Shape(16384 // length, length) for length in range(1024, 8193, 1024)]
    steps = [Step(np.zeros(0, np.int64), shape) for shape in shapes]
    found = planning._shapes_of(steps, only_main=False)
    assert [shape.length for shape in found] == [2048, 4096, 6144, 8192]
    assert sum(times * shape.tokens for shape, times in found.items()) == sum(shape.tokens for shape in shapes)
    assert [shape.length for shape in planning._shapes_of(steps[:3], only_main=False)] == [1024, 2048, 3072]
