"""Plans of trainings: what is compiled, and what follows from it."""

import json
import math

import pytest

from flax_rerank.batching import Shape
from flax_rerank.cli import main
from flax_rerank.dtypes import FLOAT32
from flax_rerank.models.attention import scores_of
from flax_rerank.operations import count_work, sizes_of
from flax_rerank.params import shapes_of
from flax_rerank.planning import training as module
from flax_rerank.planning.report import costs, training_as_text
from flax_rerank.planning.step import DoesNotFit, StepPlan
from flax_rerank.planning.topology import find_topology
from flax_rerank.planning.training import Training, TrainingPlan, plan_training
from flax_rerank.sharding import MeshError
from flax_rerank.training.lora import LoRASettings, trained_shapes

LORA = LoRASettings(rank=4)


def count(shapes):
    return sum(map(math.prod, shapes.values()))


def test_the_step_is_compiled_and_counted(small):
    spec = small(max_length=32)
    plan = plan_training(spec, find_topology("cpu:2"), Training(1, 2, 3))
    assert (plan.mesh, plan.step.shape, plan.examples_per_step) == ("data=2", Shape(12, 32), 6)
    assert plan.others == {"data=1,model=2": "not compiled: it splits the model further"}
    # Parameters and two moments, in float32.
    shapes = shapes_of(spec.module(FLOAT32))
    assert plan.step.memory.arguments == pytest.approx(12 * count(shapes), rel=0.01)
    assert plan.step.memory.temporaries > 4 * count(shapes)
    forward = 6 * count_work(sizes_of(spec.config, spec.readout), 32, count_scores=scores_of).operations
    assert plan.step.flops == 3 * forward


def test_with_lora_the_rest_is_frozen_in_the_dtype_that_is_computed_in(small, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "measure", lambda traced, topology, shape, flops, bits: seen.append((traced, flops)))
    spec = small(max_length=32, dtype="bfloat16")
    training = Training(1, 2, 1, gradient_checkpointing=True, lora=LORA)
    module.compile_training(spec, find_topology("cpu:2"), "data=2", training)
    ((traced, flops),) = seen
    (state, frozen, batch, key), _ = traced.args_info
    shapes = shapes_of(spec.module(FLOAT32))
    assert {path: leaf.shape for path, leaf in state.trained.items()} == trained_shapes(shapes, LORA)
    assert {leaf.dtype.name for leaf in state.trained.values()} == {"float32"}
    assert {path: leaf.shape for path, leaf in frozen.items()} == shapes
    assert {leaf.dtype.name for leaf in frozen.values()} == {"bfloat16"}
    assert (batch.input_ids.shape, batch.labels.shape) == ((1, 4, 32), (1, 2, 2))
    assert key.shape == ()  # for the dropout
    assert flops == 2 * 4 * count_work(sizes_of(spec.config, spec.readout), 32, count_scores=scores_of).operations


def test_the_next_mesh_is_tried_where_a_step_does_not_fit(small, monkeypatch):
    tried = []

    def compile_training(spec, topology, mesh, training):
        tried.append(mesh)
        if mesh == "data=4":
            raise DoesNotFit(Shape(8, 64), 20 * 2**30, 16 * 2**30)
        if mesh == "data=2,model=2":
            raise MeshError("the vocabulary does not divide")
        return StepPlan(Shape(64, 64), 1e12, 1e9, {"matrix": 2.0, "memory": 1.0})

    monkeypatch.setattr(module, "compile_training", compile_training)
    training = Training(examples=1001)
    plan = plan_training(small(), find_topology("cpu:4"), training, price=1.5)
    assert tried == ["data=4", "data=2,model=2", "data=1,model=4"]
    assert plan.mesh == "data=1,model=4"
    # 8 examples a step of 2 seconds.
    assert (plan.steps, plan.hours, costs(plan)["price"]) == (126, 252 / 3600, 252 / 3600 * 4 * 1.5)
    text = training_as_text(plan)
    assert "data=4: a step of 8 x 64 takes 20.00 GiB of a device's 16.00 GiB" in text
    assert "data=2,model=2: the vocabulary does not divide" in text
    assert text.splitlines()[-1].split() == ["126", "4.0", "matrix", "0.07", "0.28", "1.50", "0.42"]
    with pytest.raises(MeshError, match="does not divide"):
        plan_training(small(), find_topology("cpu:4"), training, mesh="data=2,model=2")
    nothing = plan_training(small(), find_topology("cpu:4"), training, mesh="data=4")
    assert (nothing.mesh, nothing.step, nothing.steps, nothing.hours) == (None, None, None, None)
    assert "fits no mesh of cpu:4: take gradient checkpointing, LoRA" in training_as_text(nothing)


def test_trainings_on_gpus_are_not_planned(small):
    with pytest.raises(ValueError, match="h100:8: trainings are planned by compiling, for TPUs alone"):
        plan_training(small(), find_topology("h100:8"), Training())


def test_the_options_of_the_command(folder, capsys, monkeypatch):
    asked = []

    def plan(spec, topology, training, **options):
        asked.append((spec.settings.max_length, training, options))
        return TrainingPlan(spec.name, topology, "bfloat16", training, None, None, {}, None)

    monkeypatch.setattr("flax_rerank.cli.plan.plan_training", plan)
    options = ["--train-group-size", "4", "--per-device-train-batch-size", "2", "--gradient-accumulation-steps", "3"]
    options += ["--gradient-checkpointing", "--lora-rank", "4", "--examples", "1e3", "--max-length", "64"]
    assert main(["plan", str(folder), "--topology", "cpu:2", "--train", "--price", "2", "--json", *options]) == 1
    ((length, training, more),) = asked
    assert (length, more) == (64, {"mesh": None, "price": 2.0})
    assert training == Training(2, 4, 3, True, LORA, 1000)
    assert json.loads(capsys.readouterr().out)["fits"] is False
