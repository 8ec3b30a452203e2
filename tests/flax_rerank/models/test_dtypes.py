"""The dtype policy: what is stored, what is computed, and where gradients end up."""

from functools import cache

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
    "encoder": (Encoder, ENCODER, Readout("first", "dense", layers=(2,), heads=(0,))),
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


@cache
def model_of(kind, stored, computed):
    """A compiled function of parameters that scores the batch, and the parameters' shapes."""
    module, config, readout = MODELS[kind]
    graphdef, state = nnx.split(nnx.eval_shape(lambda: module(config, readout, DTypes(stored, computed))))
    return jax.jit(lambda params: nnx.merge(graphdef, params)(*BATCH, readout=readout)), state


def parts(kind, stored, computed, rounded=lambda path: False):
    """A function of parameters that scores the batch, and random parameters, those that `rounded` names as bfloat16
    holds them."""
    score, state = model_of(kind, stored, computed)
    rng = np.random.default_rng(0)

    def draw(path, param):
        numbers = rng.standard_normal(param.shape, dtype=np.float32) * np.float32(0.3)
        return (numbers.astype(BF16) if rounded(path) else numbers).astype(param.dtype)

    return score, jax.tree_util.tree_map_with_path(draw, state)


def scores_of(kind, stored, computed, rounded=lambda path: False):
    score, params = parts(kind, stored, computed, rounded)
    assert {param.dtype for param in jax.tree.leaves(params)} == {np.dtype(stored)}
    scores = np.asarray(score(params))
    assert scores.dtype == np.float32
    return scores


@pytest.mark.parametrize("kind", MODELS)
def test_float32_parameters_computed_in_bfloat16_score_as_bfloat16_parameters(kind):
    """To the bit: parameters in products are rounded where they are used. Norms, biases and heads are float32 as
    stored; here they have values that bfloat16 holds."""
    scores = scores_of(kind, F32, BF16, used_in_float32)
    np.testing.assert_array_equal(scores, scores_of(kind, BF16, BF16, used_in_float32))
    exact = scores_of(kind, F32, F32, used_in_float32)
    assert 0 < np.abs(scores - exact).max() < 0.1


def test_norms_biases_and_heads_are_used_as_stored():
    difference = scores_of("decoder", F32, BF16) - scores_of("decoder", F32, BF16, used_in_float32)
    assert 0 < np.abs(difference).max() < 0.1


@pytest.mark.parametrize("kind", MODELS)
def test_gradients_under_bfloat16_compute_are_float32_and_reach_every_parameter(kind):
    """And have the direction of those that float32 computes. (One by one they would not: a key's bias has none.)"""
    gradients = []
    for computed in (F32, BF16):
        score, params = parts(kind, F32, computed)
        gradient = jax.jit(jax.grad(lambda params, score=score: score(params).sum()))
        gradients.append([np.asarray(leaf) for leaf in jax.tree.leaves(gradient(params))])
    assert all(gradient.dtype == F32 for gradient in gradients[1])
    assert all(np.abs(gradient).max() > 0 for gradient in gradients[1])
    exact, rounded = (np.concatenate([np.ravel(gradient) for gradient in each]) for each in gradients)
    assert exact @ rounded > 0.99 * np.linalg.norm(exact) * np.linalg.norm(rounded)
