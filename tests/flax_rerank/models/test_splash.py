"""The TPU kernel against the plain attention, interpreted on the CPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from flax_rerank.models.attention import attention
from flax_rerank.models.splash import block_size, kernel_scores, keys_read_again, splash_attention, splash_attention_on

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
LENGTHS = jnp.asarray([150, 37], jnp.int32)


def inputs(length, heads, kv_heads, size, dtype="float32", batch=2):
    rng = np.random.default_rng(0)
    shapes = [(batch, length, count, size) for count in (heads, kv_heads, kv_heads)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def dense_mask(length, causal, window, lengths):
    position = np.arange(length)
    back = position[:, None] - position[None]
    mask = (back >= 0)[None] if causal else np.ones((1, length, length), bool)
    if window:
        mask = mask & (np.abs(back) < window)
    if lengths is not None:
        mask = mask & (position[None, None] < np.asarray(lengths)[:, None, None])
    return jnp.asarray(mask)


def difference(length, heads, kv_heads, size, *, causal, window=0, lengths=None, softcap=None, dtype="float32"):
    arrays = inputs(length, heads, kv_heads, size, dtype)
    mask = dense_mask(length, causal, window, lengths)
    plain = attention(*arrays, mask=mask, scale=size**-0.5, softcap=softcap)
    switches = {"causal": causal, "window": window, "scale": size**-0.5, "softcap": softcap, "interpret": True}
    kernel = jax.jit(partial(splash_attention, lengths=lengths, **switches))(*arrays)
    assert kernel.dtype == plain.dtype
    assert kernel.shape == plain.shape
    assert np.isfinite(np.asarray(kernel, np.float32)).all()
    real = np.full(2, length) if lengths is None else np.asarray(lengths)
    return max(
        float(np.abs(np.asarray(a[:end], np.float32) - np.asarray(b[:end], np.float32)).max())
        for a, b, end in zip(kernel, plain, real, strict=True)
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_encoders_padding_is_not_seen(dtype):
    found = difference(150, 4, 4, 64, causal=False, lengths=LENGTHS, dtype=dtype)
    assert found < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_causal_with_softcap_and_grouped_heads_of_256(dtype):
    assert difference(140, 4, 2, 256, causal=True, softcap=50.0, dtype=dtype) < TOLERANCE[dtype]


def test_a_window_over_several_blocks():
    assert difference(700, 2, 1, 64, causal=True, window=100) < 1e-5


def test_a_window_to_both_sides_is_finite_in_the_padding():
    assert difference(700, 2, 2, 64, causal=False, window=65, lengths=jnp.asarray([700, 200])) < 1e-5


def test_each_device_of_a_mesh_has_its_rows_and_heads():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
    for kv_heads in (1, 2, 4):  # replicated, repeated, split
        arrays = inputs(128, 4, kv_heads, 64)
        expected = attention(*arrays, mask=dense_mask(128, True, 0, None), scale=0.125)
        found = jax.jit(
            lambda *arrays: splash_attention_on(
                mesh, *arrays, lengths=None, causal=True, window=0, scale=0.125, interpret=True
            )
        )(*arrays)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_heads_that_do_not_divide_are_on_all_devices():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
    arrays = inputs(128, 3, 3, 64)
    expected = attention(*arrays, mask=dense_mask(128, False, 0, None), scale=0.125)
    switches = {"lengths": None, "causal": False, "window": 0, "scale": 0.125, "interpret": True}
    found = jax.jit(partial(splash_attention_on, mesh, **switches))(*arrays)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("length", "block"), [(256, 256), (536, 640), (1024, 512), (768, 384), (8192, 512)])
def test_blocks_pad_little(length, block):
    assert block_size(length) == block


def test_blocks_above_the_diagonal_or_beyond_the_window_are_not_computed():
    assert kernel_scores(2048, causal=False, window=0) == 16 * 512**2
    assert kernel_scores(2048, causal=True, window=0) == 10 * 512**2
    assert kernel_scores(2048, causal=True, window=500) == 7 * 512**2
    assert kernel_scores(580, causal=True, window=0) == 640**2


def test_keys_are_read_again_for_each_head_and_block():
    assert keys_read_again(256, 4, 2, causal=True, window=0) == 0
    assert keys_read_again(2048, 4, 2, causal=True, window=0) == 4 * (1 + 2 + 3 + 4) * 512 - 2 * 2048


def test_the_gradient_is_that_of_plain_attention():
    arrays, mask = inputs(150, 2, 1, 64), dense_mask(150, False, 0, LENGTHS)
    real = (jnp.arange(150)[None] < LENGTHS[:, None])[:, :, None, None]

    def kernel(*arrays):
        settings = {"lengths": LENGTHS, "causal": False, "window": 0, "softcap": 20.0, "interpret": True}
        return jnp.where(real, jnp.sin(splash_attention(*arrays, scale=0.1, **settings)), 0.0).sum()

    def plain(*arrays):
        return jnp.where(real, jnp.sin(attention(*arrays, mask=mask, scale=0.1, softcap=20.0)), 0.0).sum()

    for found, expected in zip(*(jax.grad(f, (0, 1, 2))(*arrays) for f in (kernel, plain)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
