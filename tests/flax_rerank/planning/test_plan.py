import dataclasses
import os
import subprocess
import sys

import pytest

from flax_rerank.batching import Shape
from flax_rerank.planning import plan as planning
from flax_rerank.planning.chips import CHIPS, GIB
from flax_rerank.planning.plan import make_plan, nearest_that_fits, sensible_meshes, smaller_steps
from flax_rerank.planning.step import _needed
from flax_rerank.planning.topology import find_topology
from flax_rerank.planning.workload import longest

LENGTH, WIDTH, INNER, LAYERS = 128, 256, 1024, 3
# Arguments are placed and a step is run, and what the process takes for it is compared with the plan.
RUN = """
import sys, jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from flax_rerank.batching import Shape
from flax_rerank.planning.abstract import find_model, weightless_reranker
from flax_rerank.planning.step import plan_step
from flax_rerank.planning.topology import find_topology
from flax_rerank.scoring import empty_batch
from flax_rerank.sharding import ShardingRules, over_data

def status(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))

topology = find_topology("cpu:8")
rules = ShardingRules(vocab=None)
reranker = weightless_reranker(find_model(sys.argv[1]), topology, "data=2,model=4", rules)
shape = Shape(1024, 32)
step = plan_step(reranker, topology, shape, {})
compiled = reranker.trace(shape, {}).lower().compile()
before = status("VmRSS")
leaves = tuple(
    jax.device_put(np.full(each.shape, 0.01, each.dtype), each.sharding) for each in reranker.parameters
)
batch = jax.device_put(empty_batch(shape), over_data(reranker.mesh))
jax.block_until_ready((leaves, batch))
compiled(leaves, batch).block_until_ready()
print(step.memory.total * 8, status("VmHWM") - before)
"""


def flops_of_the_architecture(shape):
    """Products of an encoder: of the last layer only keys and values are for all tokens."""
    keys_and_values, others = 2 * WIDTH**2, 2 * WIDTH**2 + 2 * WIDTH * INNER

    def layers(count, positions):
        return count * (2 * shape.length * keys_and_values + positions * (2 * others + 4 * shape.length * WIDTH))

    return shape.rows * (layers(LAYERS - 1, shape.length) + layers(1, 1))


def test_flops_are_those_of_the_architecture(small):
    plan = make_plan(small, find_topology("cpu:8"), longest(None), mesh="data=4,model=2", max_length=LENGTH)
    ((step, _),) = plan.best.steps.values()
    assert step.shape.length == LENGTH
    assert step.counts.flops == pytest.approx(flops_of_the_architecture(step.shape) / 8, rel=0.02)
    reductions = [each.times for each in step.counts.collectives if each.kind == "all-reduce"]
    assert reductions.count(LAYERS - 1) == 2


def test_flops_of_a_traced_step_are_those_of_the_architecture(small):
    plan = make_plan(small, find_topology("h100:8"), longest(10**6), price=2.0, max_length=LENGTH, dtype="bfloat16")
    ((step, per_pair),) = plan.best.steps.values()
    assert step.counts.flops == pytest.approx(flops_of_the_architecture(step.shape) / 8, rel=0.02)
    assert step.roofline.matrix == pytest.approx(step.counts.flops / CHIPS["h100"].flops)
    assert plan.hours == pytest.approx(10**6 * per_pair * step.roofline.seconds / 3600)
    assert plan.cost == pytest.approx(plan.hours * 8 * 2.0)


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


def test_a_vocabulary_that_does_not_divide_is_replicated_and_that_is_said(small):
    plan = make_plan(small, find_topology("cpu:8"), longest(None), mesh="data=4,model=2", max_length=LENGTH)
    (note,) = plan.best.notes
    assert note.startswith("the vocabulary of 2001 does not divide over data=4,model=2")


def test_meshes_that_heads_do_not_divide_over_are_refused(small):
    plan = make_plan(small, find_topology("cpu:8"), longest(None), max_length=LENGTH)
    assert plan.best.mesh == "data=8"
    reasons = {each.mesh: each.refused for each in plan.others}
    assert reasons["data=1,model=8"].startswith("num_attention_heads is 4, which does not divide over model=8")
    assert reasons["data=4,model=2"] == "not compiled: nothing is known of the speed, and data=8 fits"


@pytest.mark.parametrize(
    ("topology", "mesh", "message"),
    [
        ("cpu:8", "data=3,model=2", "takes 6 devices; there are 8.*Meshes of cpu:8: data=8; data=4,model=2"),
        ("cpu:8", "data=1,model=8", "num_attention_heads is 4.*take model=4.*Meshes of cpu:8"),
        ("h100:8", "data=4,model=2", "GPUs are planned by roofline alone.* take data=8"),
    ],
)
def test_a_mesh_that_cannot_be_names_those_that_can(small, topology, mesh, message):
    with pytest.raises(ValueError, match=message):
        make_plan(small, find_topology(topology), longest(None), mesh=mesh)


def test_a_model_that_fits_no_mesh(small):
    tiny = dataclasses.replace(CHIPS["h100"], memory=1e6)
    plan = make_plan(small, dataclasses.replace(find_topology("h100:8"), chip=tiny), longest(None), dtype="bfloat16")
    assert plan.best is None
    assert plan.others[0].refused == "its parameters take 0.01 GiB of a device's 0.00 GiB"


def test_the_nearest_to_a_mesh_that_does_not_fit(small, monkeypatch):
    def fits_when_split(reranker, topology, shape, options):
        if reranker.mesh.shape["model"] == 1:
            raise planning.DoesNotFit(None)
        return dataclasses.replace(step, shape=shape)

    topology = find_topology("cpu:8")
    step = make_plan(small, topology, longest(None), mesh="data=8", max_length=64).best.steps.popitem()[1][0]
    monkeypatch.setattr(planning, "plan_step", fits_when_split)
    assert make_plan(small, topology, longest(None), mesh="data=8", max_length=64).best is None
    nearest = nearest_that_fits(small, topology, longest(None), mesh="data=8", max_length=64)
    assert (nearest.topology.name, nearest.best.mesh) == ("cpu:8", "data=4,model=2")
    assert nearest_that_fits(small, find_topology("h100:1"), longest(None)) is None


def test_steps_that_do_not_fit_are_cut_as_scoring_does(small, monkeypatch):
    compiled = []

    def fits_from_16_rows(reranker, topology, shape, options):
        compiled.append(shape.rows)
        if shape.rows > 16:
            raise planning.DoesNotFit(3.5 * GIB)
        return dataclasses.replace(step, shape=shape)

    topology = find_topology("h100:8")
    step = make_plan(small, topology, longest(None), max_length=64, dtype="bfloat16").best.steps.popitem()[1][0]
    monkeypatch.setattr(planning, "plan_step", fits_from_16_rows)
    plan = make_plan(small, topology, longest(None), max_length=LENGTH, dtype="bfloat16")
    assert compiled == [128, 64, 32, 16]
    assert plan.best.notes[0] == (
        "a step of 128 x 128 takes 3.50 GiB of a device's 67.06 GiB: cut into steps of 64 rows, as scoring does"
    )
    ((_, per_pair),) = plan.best.steps.values()
    assert per_pair == pytest.approx(1 / 16, rel=0.01)


def test_halves_keep_a_row_for_each_device():
    assert smaller_steps(Shape(24, 512), 8) == Shape(16, 512)
    assert smaller_steps(Shape(8, 512), 8) is None


def test_the_compilers_figure_is_read():
    assert _needed("Ran out of memory in memory space hbm. Used 22.50G of 15.75G hbm.") == 22.5 * GIB
    assert _needed("memory required for HLO temporaries (512.00M) exceeds available HBM") == 512 * 2**20
    assert _needed("RESOURCE_EXHAUSTED") is None
