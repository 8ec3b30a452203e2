"""The training step: FlagEmbedding's curves, and that sharding, padding, remat and dtype change nothing else."""

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference_cases import CASES

from flax_rerank.dtypes import FLOAT32, DTypes
from flax_rerank.models.compression import Compression
from flax_rerank.params import load_arrays, with_params
from flax_rerank.sharding import DEFAULT_RULES, make_mesh, parameter_shardings
from flax_rerank.spec import open_spec
from flax_rerank.training import lora
from flax_rerank.training.heads import new_head
from flax_rerank.training.losses import Objective
from flax_rerank.training.optimizer import OptimizerSettings
from flax_rerank.training.step import Batch, TrainingStep, cut, place

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))

import check_training_cases

BFLOAT16 = DTypes(np.dtype(np.float32), jnp.dtype(jnp.bfloat16))
SETTINGS = OptimizerSettings(learning_rate=1e-2, max_grad_norm=0.0, lr_scheduler_type="constant")
LORA = lora.LoRASettings(rank=2, dropout=0.0, heads=True)
LENGTH = 24
COMPRESSION = Compression(((1, LENGTH), (2, LENGTH)), 2, 3)


class Run:
    """A small model in training, on one device or a mesh of several."""

    def __init__(self, case, *, mesh="data=1", dtypes=FLOAT32, settings=None, **options):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'Yes' is 2 tokens", UserWarning)
            self.spec = open_spec(str(CASES / case))
        self.module = self.spec.module(dtypes)
        self.mesh = make_mesh(jax.devices()[: np.prod([int(part[-1]) for part in mesh.split(",")])], mesh)
        shardings = parameter_shardings(self.module, self.mesh, DEFAULT_RULES)
        params = load_arrays(self.spec.weights(self.module), dtypes.stored, shardings)
        self.lora = settings
        trained, self.frozen = lora.start(params, shardings, settings, jax.random.key(1))
        where = lora.trained_shardings(shardings, {path: array.shape for path, array in trained.items()})
        self.training = TrainingStep(
            self.module, self.mesh, dtypes, where,
            objective=Objective(), optimizer=options.pop("optimizer", SETTINGS), lora=settings, **options,
        )  # fmt: skip
        self.state = self.training.init(trained)

    def step(self, batch, *, compression=None, key=None):
        placed = place(batch, self.mesh)
        self.state, metrics = self.training(self.state, self.frozen, placed, self.spec.readout, compression, key)
        return jax.device_get(metrics)

    def gradient(self):
        """That of the first step."""
        return {path: np.asarray(array) * 10 for path, array in optax.tree.get(self.state.optimizer, "mu").items()}


def make_batch(groups=4, size=2, micro=1):
    """Random tokens; the first passage of each group is its positive."""
    random = np.random.default_rng(0)
    shape = micro, groups * size
    lengths = random.integers(LENGTH - 8, LENGTH + 1, shape).astype(np.int32)
    input_ids = random.integers(5, 500, (*shape, LENGTH)).astype(np.int32)
    labels = np.zeros((micro, groups, size), np.float32)
    labels[..., 0] = 1
    return Batch(input_ids, lengths, np.full(shape, 6, np.int32), labels, np.ones_like(labels, bool))


@pytest.fixture(scope="module")
def encoder():
    """Gradient and metrics of one step of an encoder."""
    run = Run("encoder-bert")
    return run.step(make_batch()), run.gradient()


@pytest.fixture(scope="module")
def adapted():
    """A layerwise model with factors after one step, what it had frozen before, and the metrics of two steps."""
    run = Run("layerwise-minicpm", settings=LORA)
    frozen = {path: np.array(array) for path, array in run.frozen.items()}
    metrics = [run.step(make_batch())]
    merged = {path: np.array(array) for path, array in lora.merge(run.state.trained, run.frozen, run.lora).items()}
    return run, frozen, merged, [*metrics, run.step(make_batch())]


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        if path == "layers.attention.key.bias":  # it moves all scores of a query alike: its gradient is 0
            assert max(np.abs(found[path]).max(), np.abs(array).max()) < 1e-6
            continue
        np.testing.assert_allclose(
            found[path], array, rtol=1e-4, atol=1e-5 * max(np.abs(array).max(), 1e-2), err_msg=path
        )


@pytest.mark.parametrize(("name", "weights"), [("layerwise-lora", True), ("encoder-accumulate-sum", False)])
def test_curves_are_those_of_flag_embedding(name, weights):
    deviations = check_training_cases.replay(check_training_cases.Case(CASES / "training" / name), weights=weights)
    assert len(deviations) == 4 + weights
    for what, deviation in deviations.items():
        assert deviation.found <= deviation.allowed, f"{what} {deviation.where}"


def assert_reaches(gradients):
    for path, gradient in gradients.items():
        # Of a softmax over a group, what all its logits have in common has no gradient; nor has any key's bias.
        if path not in ("head.out_proj.bias", "layers.attention.key.bias"):
            parts = gradient if path.startswith("layers.") or path == "head" else [gradient]
            assert all(np.abs(part).max() > 1e-8 for part in parts), path


def test_gradients_reach_every_parameter_of_an_encoder(encoder):
    assert_reaches(encoder[1])


@pytest.mark.parametrize("case", ["encoder-modernbert-mean", "encoder-deberta-v2"])
def test_gradients_reach_every_parameter_of_other_encoders(case):
    run = Run(case)
    run.step(make_batch())
    assert_reaches(run.gradient())


@pytest.mark.parametrize(("case", "compression"), [("decoder-llama", None), ("lightweight-gemma2", COMPRESSION)])
def test_gradients_reach_every_parameter_of_a_decoder(case, compression):
    run = Run(case)
    run.step(make_batch(), compression=compression)
    assert_reaches(run.gradient())


def test_a_sharded_step_is_that_of_one_device(adapted):
    run = Run("layerwise-minicpm", mesh="data=4,model=2", settings=LORA)
    for expected in adapted[-1]:
        found = run.step(make_batch())
        np.testing.assert_allclose(found.logits, expected.logits, atol=2e-4)
        np.testing.assert_allclose(found.gradient_norm, expected.gradient_norm, rtol=1e-4)
    moments = optax.tree.get(run.state.optimizer, "mu")
    for path, sharding in run.training.shardings.trained.items():
        for array in (moments[path], run.state.trained[path]):
            assert sharding.is_equivalent_to(array.sharding, array.ndim)
    factor = run.state.trained["layers.mlp.up_proj.kernel.lora_b"]
    assert factor.addressable_shards[0].data.shape == (*factor.shape[:2], factor.shape[2] // 2)


def test_neither_filling_up_a_batch_nor_remat_changes_anything(encoder):
    """Four groups of two, in two micro batches of three groups of three."""
    full = make_batch()
    input_ids, lengths, starts = (
        np.zeros((2, 9, LENGTH), np.int32),
        np.ones((2, 9), np.int32),
        np.ones((2, 9), np.int32),
    )
    labels, mask = np.zeros((2, 3, 3), np.float32), np.zeros((2, 3, 3), bool)
    for group, (micro, place_in_it) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0)]):
        for item in range(2):
            row = place_in_it * 3 + item
            input_ids[micro, row] = full.input_ids[0, group * 2 + item]
            lengths[micro, row] = full.lengths[0, group * 2 + item]
            starts[micro, row] = full.passage_starts[0, group * 2 + item]
        labels[micro, place_in_it, :2], mask[micro, place_in_it, :2] = full.labels[0, group], True
    run = Run("encoder-bert", remat=True)
    metrics = run.step(Batch(input_ids, lengths, starts, labels, mask))
    np.testing.assert_allclose(metrics.loss, encoder[0].loss, rtol=1e-5)
    assert_same(run.gradient(), encoder[1])


def test_a_batch_that_is_cut_has_the_same_gradient(encoder):
    batch = cut(make_batch(), 4 * LENGTH, 1)
    assert batch.input_ids.shape == (2, 4, LENGTH)
    assert batch.mask.shape == (2, 2, 2)
    # Two devices, each with a group in every micro batch; and a group that is longer than was asked for.
    assert cut(make_batch(), 4 * LENGTH, 2).mask.shape == (2, 2, 2)
    assert cut(make_batch(), LENGTH, 1).mask.shape == (4, 1, 2)
    run = Run("encoder-bert")
    metrics = run.step(batch)
    np.testing.assert_allclose(metrics.loss, encoder[0].loss, rtol=1e-5)
    gradient, expected = run.gradient(), encoder[1]
    error = optax.tree.norm({path: gradient[path] - expected[path] for path in expected})
    assert error < 2e-5 * optax.tree.norm(expected)


def test_bfloat16_computes_with_float32_masters(encoder):
    run = Run("encoder-bert", dtypes=BFLOAT16, optimizer=replace(SETTINGS, learning_rate=1e-6))
    before = np.array(run.state.trained["layers.output.kernel"])
    metrics = run.step(make_batch())
    assert metrics.loss != encoder[0].loss
    np.testing.assert_allclose(metrics.loss, encoder[0].loss, rtol=2e-2)
    leaves = [*run.state.trained.values(), *run.gradient().values()]
    assert all(leaf.dtype == np.float32 for leaf in leaves)
    changed = np.abs(np.asarray(run.state.trained["layers.output.kernel"]) - before)
    assert 0 < np.median(changed) < 2e-6  # bfloat16 would keep most of these numbers as they are


def test_lora_trains_factors_and_heads_and_merges(adapted):
    run, frozen, merged, metrics = adapted
    assert metrics[1].loss < metrics[0].loss
    assert {path for path in run.state.trained if ".lora_" not in path} == {"head"}
    assert all((frozen[path] == np.asarray(array)).all() for path, array in run.frozen.items())
    model, batch = with_params(run.module, jax.tree.map(jnp.asarray, merged)), make_batch()
    apply = jax.jit(lambda *batch: model(*batch, readout=run.spec.readout))
    logits = apply(batch.input_ids[0], batch.lengths[0], batch.passage_starts[0])
    np.testing.assert_allclose(logits.T.reshape(metrics[1].logits.shape), metrics[1].logits, atol=1e-4)


def test_dropout_of_lora_follows_its_key():
    settings = replace(LORA, dropout=0.25)
    ones = {"head.lora_a": jnp.ones((4, 500, 2)), "head.lora_b": jnp.ones((4, 2, 1))}

    def update(key):
        """That of each input feature, 1 without dropout."""
        found = lora.combine(ones, {"head": jnp.zeros((4, 500))}, settings, key)
        return np.asarray(found["head"][...]) / (2 * settings.alpha / settings.rank)

    first, again, other = (update(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(update(None), 1.0)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_allclose(np.unique(first), [0.0, 4 / 3], rtol=1e-6)
    assert 0.2 < (first == 0).mean() < 0.3


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (lora.LoRASettings(targets=("q_proj", "c_attn")), "'c_attn'"),
        (lora.LoRASettings(targets=("head",), heads=True), "trained as a whole"),
    ],
)
def test_lora_targets_that_cannot_be(settings, error):
    with pytest.raises(ValueError, match=error):
        lora.target_paths({"layers.self_attn.q_proj.kernel": (2, 4, 4), "head": (1, 4)}, settings)


def test_new_head():
    module = Run("encoder-bert").module
    head = new_head(module, jax.random.key(0))
    assert head.keys() == {"head.dense.kernel", "head.dense.bias", "head.out_proj.kernel", "head.out_proj.bias"}
    assert 0.015 < np.std(head["head.dense.kernel"]) < 0.025
    np.testing.assert_array_equal(head["head.dense.bias"], 0.0)


def test_learning_rates_of_a_cosine():
    settings = OptimizerSettings(learning_rate=1.0, lr_scheduler_type="cosine", warmup_steps=2, max_steps=6)
    rates = [float(settings.schedule()(step)) for step in range(6)]
    wanted = [0.0, 0.5, *((1 + np.cos(np.pi * step / 4)) / 2 for step in range(4))]
    np.testing.assert_allclose(rates, wanted, atol=1e-6)
