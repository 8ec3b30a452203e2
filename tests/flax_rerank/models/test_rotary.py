"""Rotary embeddings against numpy in float64, and what each way of stretching them keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_rerank.models import rotary
from flax_rerank.models.rotary import RopeScaling

rotary_angles = jax.jit(rotary.rotary_angles, static_argnames=("length", "head_dim", "theta", "scaling"))
rotate = jax.jit(rotary.rotate)

HEAD_DIM = 64
THETA = 10000.0
LENGTHS = jnp.asarray([5, 64, 33], jnp.int32)

LLAMA3 = RopeScaling(
    "llama3", factor=8.0, original_max_position_embeddings=1024, low_freq_factor=1.0, high_freq_factor=4.0
)
DYNAMIC = RopeScaling("dynamic", factor=2.0, original_max_position_embeddings=64)


def frequencies(theta=THETA, head_dim=HEAD_DIM):
    return theta ** -(np.arange(0, head_dim, 2) / head_dim)


def frequencies_of(scaling, lengths=LENGTHS):
    """The angles at position 1, [rows, HEAD_DIM / 2]."""
    cos, sin = rotary_angles(2, lengths, HEAD_DIM, THETA, scaling)
    return np.arctan2(np.asarray(sin, np.float64), np.asarray(cos, np.float64))[:, 1, 0]


@pytest.mark.parametrize("theta", [10000.0, 1000000.0])
@pytest.mark.parametrize("head_dim", [6, 64])
def test_angles_are_position_times_frequency(head_dim, theta):
    cos, sin = rotary_angles(64, LENGTHS, head_dim, theta, None)
    angles = np.arange(64)[:, None] * frequencies(theta, head_dim)
    assert cos.shape == sin.shape == (1, 64, 1, head_dim // 2)
    assert cos.dtype == sin.dtype == jnp.float32
    np.testing.assert_allclose(cos[0, :, 0], np.cos(angles), atol=2e-5)
    np.testing.assert_allclose(sin[0, :, 0], np.sin(angles), atol=2e-5)


def test_the_first_half_of_a_head_turns_against_the_second():
    x = np.random.default_rng(0).standard_normal((2, 7, 3, HEAD_DIM), dtype=np.float32)
    cos, sin = rotary_angles(7, LENGTHS, HEAD_DIM, THETA, None)
    first, second = np.split(x.astype(np.float64), 2, axis=-1)
    turned = (first + 1j * second) * np.exp(1j * np.arange(7)[:, None] * frequencies())[:, None]
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(rotate(jnp.asarray(x), cos, sin), expected, atol=1e-5)


def test_turning_keeps_the_dtype():
    cos, sin = rotary_angles(7, LENGTHS, HEAD_DIM, THETA, None)
    assert rotate(jnp.ones((1, 7, 1, HEAD_DIM), jnp.bfloat16), cos, sin).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "scaling",
    [None, RopeScaling("linear", 4.0), LLAMA3, DYNAMIC],
    ids=["plain", "linear", "llama3", "dynamic"],
)
def test_products_depend_on_the_distance_of_positions_alone(scaling):
    length = 96
    query, key = np.random.default_rng(1).standard_normal((2, 1, 1, 1, HEAD_DIM), dtype=np.float32)
    angles = rotary_angles(length, jnp.asarray([length], jnp.int32), HEAD_DIM, THETA, scaling)
    queries, keys = (rotate(jnp.asarray(np.tile(x, (1, length, 1, 1))), *angles)[0, :, 0] for x in (query, key))
    products = np.asarray(queries @ keys.T)
    for distance in (0, 1, 7, 40):
        diagonal = np.diagonal(products, -distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=0, atol=1e-4)
    assert abs(products[0, 0] - products[7, 0]) > 0.1


def test_linear_scaling_divides_positions():
    cos, sin = rotary_angles(64, LENGTHS, HEAD_DIM, THETA, RopeScaling("linear", factor=4.0))
    plain_cos, plain_sin = rotary_angles(16, LENGTHS, HEAD_DIM, THETA, None)
    np.testing.assert_allclose(cos[:, ::4], plain_cos, atol=1e-5)
    np.testing.assert_allclose(sin[:, ::4], plain_sin, atol=1e-5)


def test_llama3_keeps_high_frequencies_divides_low_ones_and_blends_between():
    plain = frequencies()
    kept = frequencies_of(LLAMA3)[0] / plain
    turns = LLAMA3.original_max_position_embeddings * plain / (2 * np.pi)
    high, low = turns >= LLAMA3.high_freq_factor, turns <= LLAMA3.low_freq_factor
    between = ~high & ~low
    assert high.sum() > 2
    assert low.sum() > 2
    assert between.sum() > 2
    np.testing.assert_allclose(kept[high], 1.0, rtol=1e-5)
    np.testing.assert_allclose(kept[low], 1 / LLAMA3.factor, rtol=1e-5)
    # Frequencies fall, and so does the share that is kept: linearly in the turns within the original length.
    assert (np.diff(kept[between]) < 0).all()
    share = (turns[between] - 1.0) / (4.0 - 1.0)
    np.testing.assert_allclose(kept[between], share + (1 - share) / LLAMA3.factor, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 64])
def test_dynamic_scaling_changes_nothing_up_to_the_original_length(length):
    lengths = jnp.asarray([length], jnp.int32)
    for scaled, plain in zip(
        rotary_angles(length, lengths, HEAD_DIM, THETA, DYNAMIC),
        rotary_angles(length, lengths, HEAD_DIM, THETA, None),
        strict=True,
    ):
        np.testing.assert_allclose(scaled, plain, atol=2e-5)


def test_dynamic_scaling_raises_the_base_with_the_length_beyond():
    factor = 4.5
    scaling = RopeScaling("dynamic", factor, original_max_position_embeddings=64)
    lengths = np.array([72, 120, 512])
    base = THETA * (factor * lengths / 64 - (factor - 1)) ** (HEAD_DIM / (HEAD_DIM - 2))
    found = frequencies_of(scaling, jnp.asarray(lengths, jnp.int32))
    np.testing.assert_allclose(found, frequencies(base[:, None]), rtol=1e-5)
    assert (np.diff(found[:, -1]) < 0).all()


def test_dynamic_scaling_counts_lengths_in_eights_as_the_reference_pads_them():
    found = frequencies_of(DYNAMIC, jnp.asarray([65, 72, 73], jnp.int32))
    np.testing.assert_array_equal(found[0], found[1])
    assert found[2, -1] < found[1, -1]


def test_dynamic_scaling_of_a_row_does_not_depend_on_the_batch():
    lengths = [10, 200, 100, 65]
    together = rotary_angles(200, jnp.asarray(lengths, jnp.int32), HEAD_DIM, THETA, DYNAMIC)
    for row, length in enumerate(lengths):
        alone = rotary_angles(200, jnp.asarray([length], jnp.int32), HEAD_DIM, THETA, DYNAMIC)
        for batched, single in zip(together, alone, strict=True):
            np.testing.assert_allclose(batched[row], single[0], atol=1e-6)
