"""The dtype policy: what is stored, what is computed, and where gradients end up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flax_rerank.dtypes import DTypes
from flax_rerank.models import Decoder, DecoderConfig, Encoder, EncoderConfig, Readout

F32, BF16 = jnp.float32, jnp.bfloat16
ENCODER = EncoderConfig(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=40,
    type_vocab_size=2,
    layer_norm_eps=1e-6,
    hidden_act="gelu",
    position_offset=0,
)
DECODER = DecoderConfig(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=48,
    max_position_embeddings=64,
    hidden_act="silu",
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    rope_scaling=None,
    query_scale=8**-0.5,
    query_key_value_bias=True,
)
MODELS = {
    "encoder": (Encoder, ENCODER, Readout("first", "dense_tanh", layers=(2,), heads=(0,))),
    "decoder": (Decoder, DECODER, Readout("last", "linear", layers=(1, 2), heads=(0, 1))),
}
BATCH = (
    np.random.default_rng(1).integers(2, 61, (3, 24)).astype(np.int32),
    np.array([17, 24, 5], np.int32),
    np.array([6, 9, 3], np.int32),
)


def used_in_float32(path):
    """Whether a parameter enters no product in the computed dtype: norms, biases, heads."""
    return any(name in jax.tree_util.keystr(path) for name in ("scale", "bias", "head"))


def parts(kind, stored, computed, rounded=lambda path: False):
    """A function of parameters that scores the batch, and random parameters, those that `rounded` names as bfloat16
    holds them."""
    module, config, readout = MODELS[kind]
    graphdef, state = nnx.split(nnx.eval_shape(lambda: module(config, readout, DTypes(stored, computed))))
    rng = np.random.default_rng(0)

    def draw(path, param):
        numbers = jnp.asarray(rng.standard_normal(param.shape, dtype=np.float32) * 0.3)
        return (numbers.astype(BF16) if rounded(path) else numbers).astype(param.dtype)

    params = jax.tree_util.tree_map_with_path(draw, state)
    return jax.jit(lambda params: nnx.merge(graphdef, params)(*BATCH, readout=readout)), params


@pytest.mark.parametrize("kind", MODELS)
def test_float32_parameters_computed_in_bfloat16_score_as_bfloat16_parameters(kind):
    """To the bit: parameters in products are rounded where they are used. Norms, biases and heads are float32 as
    stored, so here they have values that bfloat16 holds; with others they decide the difference."""
    scores = {}
    for rounded in (used_in_float32, lambda path: False):
        for stored in (F32, BF16):
            score, params = parts(kind, stored, BF16, rounded)
            assert {param.dtype for param in jax.tree.leaves(params)} == {jnp.dtype(stored)}
            scores[rounded, stored] = np.asarray(score(params))
        assert scores[rounded, F32].dtype == np.float32
    np.testing.assert_array_equal(scores[used_in_float32, F32], scores[used_in_float32, BF16])
    (kept, kept_rounded) = [value for (rounded, _), value in scores.items() if rounded is not used_in_float32]
    assert 0 < np.abs(kept - kept_rounded).max() < 0.1


@pytest.mark.parametrize("kind", MODELS)
def test_bfloat16_computes_what_float32_does_but_for_rounding(kind):
    score, params = parts(kind, F32, F32)
    rounded, _ = parts(kind, F32, BF16)
    difference = np.abs(np.asarray(score(params)) - np.asarray(rounded(params))).max()
    assert 0 < difference < 0.1


@pytest.mark.parametrize("kind", MODELS)
def test_gradients_under_bfloat16_compute_are_float32_and_reach_every_parameter(kind):
    """And have the direction of those that float32 computes. (One by one they would not: a key's bias has none.)"""
    gradients = []
    for computed in (F32, BF16):
        score, params = parts(kind, F32, computed)
        gradients.append(jax.tree.leaves(jax.grad(lambda params, score=score: score(params).sum())(params)))
    assert all(gradient.dtype == F32 for gradient in gradients[1])
    assert all(jnp.abs(gradient).max() > 0 for gradient in gradients[1])
    exact, rounded = (np.concatenate([np.ravel(gradient) for gradient in each]) for each in gradients)
    assert exact @ rounded > 0.99 * np.linalg.norm(exact) * np.linalg.norm(rounded)
