"""Training steps at their true shapes, compiled for a slice of eight v5e chips: they fit, and what they send."""

import math

import pytest
from compiled_programs import flops_of

from flax_rerank.dtypes import FLOAT32
from flax_rerank.params import shapes_of
from flax_rerank.planning import hlo
from flax_rerank.planning.published import find_spec
from flax_rerank.planning.report import costs
from flax_rerank.planning.topology import find_topology
from flax_rerank.planning.training import Training, plan_training
from flax_rerank.training.lora import LoRASettings, target_paths, trained_shapes

pytestmark = pytest.mark.tpu_compile

GIB = 2**30
TRAININGS = {
    "bge-reranker-v2-m3": Training(per_device_train_batch_size=1, gradient_checkpointing=True, examples=100_000),
    "bge-reranker-v2-gemma": Training(
        per_device_train_batch_size=1, gradient_checkpointing=True, examples=100_000, lora=LoRASettings()
    ),
}


@pytest.fixture(scope="module", params=TRAININGS)
def planned(request):
    """A plan, and the shapes of the model's parameters."""
    spec, training = find_spec(request.param), TRAININGS[request.param]
    plan = plan_training(spec, find_topology("v5e:2x4"), training, price=1.2)
    return plan, shapes_of(spec.module(FLOAT32))


def count(shapes):
    return sum(map(math.prod, shapes.values()))


def test_it_fits_without_splitting_the_model(planned):
    plan, shapes = planned
    assert plan.mesh == "data=8"
    trained = trained_shapes(shapes, plan.training.lora)
    frozen = {path: shape for path, shape in shapes.items() if path not in trained}
    memory = plan.step.memory
    # What is trained is float32 and has two moments, what is frozen is bfloat16. The new state takes the place of the
    # old one.
    assert memory.arguments == pytest.approx(12 * count(trained) + 2 * count(frozen), rel=0.01)
    assert memory.results < 1e-4 * memory.arguments
    assert memory.total < 15.75 * GIB


def test_gradients_are_added_up_once_and_nothing_else_is_sent(planned):
    plan, shapes = planned
    assert {(each.kind, each.devices) for each in plan.step.collectives} == {("all-reduce", 8)}
    changed = shapes
    if plan.training.lora is not None:
        changed = {path: shapes[path] for path in target_paths(shapes, plan.training.lora)}
    added = sum(each.times * each.operand_bytes for each in plan.step.collectives)
    assert added == pytest.approx(4 * count(changed), rel=0.02)


def test_the_compiled_step_computes_what_is_counted(planned):
    plan, _ = planned
    causal = plan.training.lora is not None
    found = flops_of(hlo.parse(plan.step.compiled.as_text()), causal=causal)
    # When layers are computed again, a decoder leaves out each layer's last product, which no gradient needs.
    assert found == pytest.approx(plan.step.flops, rel=0.07)


def test_a_run_has_a_time_and_a_price(planned):
    plan, _ = planned
    assert (plan.examples_per_step, plan.steps) == (8, 12_500)
    assert plan.step.flops / 197e12 <= plan.step.seconds < 1
    assert plan.hours == 12_500 * plan.step.seconds / 3600
    assert costs(plan)["price"] == pytest.approx(8 * 1.2 * plan.hours)
