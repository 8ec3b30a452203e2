"""Attention against an implementation that goes head by head, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from flax_rerank.models.attention import SPLASH_FROM, Mask, attend
from flax_rerank.models.attention import attention as traced

BATCH, LENGTH, SIZE, KV_HEADS = 3, 11, 8, 2
SCALE = SIZE**-0.5

attention = jax.jit(traced, static_argnames=("scale", "softcap"))

POSITIONS = np.arange(LENGTH)
CAUSAL = (POSITIONS[None, :] <= POSITIONS[:, None])[None]
MASKS = {
    "all": np.ones((1, 1, LENGTH), bool),
    "causal": CAUSAL,
    "window": CAUSAL & (POSITIONS[:, None] - POSITIONS[None, :] < 4)[None],
    "padding": (POSITIONS[None, :] < np.array([11, 6, 1])[:, None])[:, None],
    "causal-of-each-row": CAUSAL & (POSITIONS[None, :] < np.array([11, 6, 1])[:, None])[:, None],
}


def head_by_head(query, key, value, mask, scale, softcap):
    batch, length, heads, size = query.shape
    groups = heads // key.shape[2]
    mask = np.broadcast_to(mask, (batch, length, key.shape[1]))
    mixed = np.empty((batch, length, heads, size))
    for row in range(batch):
        for head in range(heads):
            scores = query[row, :, head] @ key[row, :, head // groups].T * scale
            if softcap is not None:
                scores = softcap * np.tanh(scores / softcap)
            weights = np.where(mask[row], np.exp(scores - scores.max()), 0.0)
            mixed[row, :, head] = weights / weights.sum(axis=-1, keepdims=True) @ value[row, :, head // groups]
    return mixed


def inputs(groups, dtype=jnp.float32):
    rng = np.random.default_rng(groups)
    shapes = [(BATCH, LENGTH, heads, SIZE) for heads in (KV_HEADS * groups, KV_HEADS, KV_HEADS)]
    return [jnp.asarray(rng.standard_normal(shape, dtype=np.float32) * 2, dtype) for shape in shapes]


def float64(arrays):
    return [np.asarray(array.astype(jnp.float32), np.float64) for array in arrays]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("groups", "softcap"), [(1, None), (2, 3.0), (4, None)])
def test_each_head_attends_with_the_key_and_value_head_of_its_group(groups, softcap, mask):
    arrays = inputs(groups)
    expected = head_by_head(*float64(arrays), MASKS[mask], SCALE, softcap)
    mixed = attention(*arrays, mask=jnp.asarray(MASKS[mask]), scale=SCALE, softcap=softcap)
    assert mixed.dtype == jnp.float32
    np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("groups", "softcap"), [(1, None), (4, 3.0)])
def test_bfloat16_differs_by_its_rounding_only(groups, softcap):
    arrays = inputs(groups, jnp.bfloat16)
    expected = head_by_head(*float64(arrays), CAUSAL, SCALE, softcap)
    mixed = attention(*arrays, mask=jnp.asarray(CAUSAL), scale=SCALE, softcap=softcap)
    assert mixed.dtype == jnp.bfloat16
    np.testing.assert_allclose(mixed.astype(jnp.float32), expected, rtol=2e-2, atol=2e-2)


def test_the_softcap_changes_what_large_scores_give():
    arrays = inputs(2)
    capped, free = (attention(*arrays, mask=jnp.asarray(CAUSAL), scale=SCALE, softcap=cap) for cap in (1.0, None))
    assert float(jnp.abs(capped - free).max()) > 0.1


def test_positions_that_the_mask_leaves_out_have_no_influence():
    query, key, value = inputs(2)
    mask = jnp.asarray(MASKS["padding"])
    spoiled = [jnp.where(mask[:, 0, :, None, None], array, 1e9) for array in (key, value)]
    np.testing.assert_array_equal(
        attention(query, key, value, mask=mask, scale=SCALE), attention(query, *spoiled, mask=mask, scale=SCALE)
    )


def test_a_row_with_nothing_allowed_is_the_mean_of_all_values():
    query, key, value = inputs(1)
    mixed = attention(query, key, value, mask=jnp.zeros((1, LENGTH, LENGTH), bool), scale=SCALE)
    np.testing.assert_allclose(mixed, jnp.broadcast_to(value.mean(axis=1, keepdims=True), mixed.shape), atol=1e-6)


def test_queries_may_be_fewer_than_keys():
    query, key, value = inputs(4)
    query = query[:, -2:]
    mask = CAUSAL[:, -2:]
    expected = head_by_head(*float64((query, key, value)), mask, SCALE, None)
    np.testing.assert_allclose(
        attention(query, key, value, mask=jnp.asarray(mask), scale=SCALE), expected, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("length", "windows", "kernels"), [(SPLASH_FROM - 1, (), 0), (SPLASH_FROM, (), 1), (SPLASH_FROM, (100, 0), 2)]
)
def test_long_inputs_that_are_traced_for_tpus_take_a_kernel_for_each_window(length, windows, kernels):
    query, key, value = (jnp.zeros((1, length, heads, 64)) for heads in (4, 2, 2))
    mask = Mask(jnp.ones((1, length, length), bool), causal=True, window=jnp.int32(0), windows=windows)
    tpu = AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    mesh = AbstractMesh((1, 1), ("data", "model"), (AxisType.Auto, AxisType.Auto), abstract_device=tpu)
    with jax.sharding.use_abstract_mesh(mesh):
        program = jax.make_jaxpr(lambda *arrays: attend(*arrays, mask, scale=0.125))(query, key, value)
    assert str(program).count("pallas_call[") == kernels
