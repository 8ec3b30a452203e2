"""Attention to distances, written out entry by entry; linear biases; windows to both sides, in blocks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_rerank.dtypes import FLOAT32
from flax_rerank.models.alibi import linear_biases, slopes_of
from flax_rerank.models.attention import LEAST_BLOCK, Mask, attention, local_attention, scores_of
from flax_rerank.models.disentangled import Distances, buckets_of, disentangled_attention
from flax_rerank.models.layers import Linear

HEADS, SIZE, LENGTH = 2, 4, 40
DISTANCES = Distances(buckets=8, longest=64, to_keys=True, to_queries=True)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def linear(seed):
    width = HEADS * SIZE
    layer = Linear(width, width, (None, None), FLOAT32)
    layer.kernel[...], layer.bias[...] = jnp.asarray(normal(width, width, seed=seed)), jnp.asarray(normal(width))
    return layer


def test_short_distances_have_a_bucket_each_and_long_ones_share_them():
    buckets = buckets_of(DISTANCES, 65)
    assert buckets[64 - 4 : 64 + 5].tolist() == list(range(4, 13))
    assert (buckets[0], buckets[-1]) == (0, 15)
    assert (np.diff(buckets) >= 0).all()


@pytest.mark.parametrize("queries", [1, LENGTH])
def test_scores_are_those_of_contents_and_distances(queries):
    query, key, value = normal(1, queries, HEADS, SIZE), normal(1, LENGTH, HEADS, SIZE), normal(1, LENGTH, HEADS, SIZE)
    to_query, to_key, states = linear(1), linear(2), jnp.asarray(normal(16, HEADS * SIZE))
    mask = Mask(jnp.asarray(np.arange(LENGTH) < 30)[None, None])
    arguments = {"distances": DISTANCES, "states": states, "to_query": to_query, "to_key": to_key}
    found = disentangled_attention(*map(jnp.asarray, (query, key, value)), mask, **arguments)
    buckets = buckets_of(DISTANCES, LENGTH)
    keys, others = (np.asarray(layer(states)).reshape(16, HEADS, SIZE) for layer in (to_key, to_query))
    expected = np.zeros((queries, HEADS, SIZE))
    for head in range(HEADS):
        for i in range(queries):
            scores = np.full(LENGTH, -np.inf)
            for j in range(30):
                at = buckets[i - j + LENGTH - 1]
                scores[j] = query[0, i, head] @ (key[0, j, head] + keys[at, head])
                scores[j] += key[0, j, head] @ others[at, head]
            weights = np.exp((scores - scores.max()) / np.sqrt(3 * SIZE))
            expected[i, head] = weights @ value[0, :, head] / weights.sum()
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_distances_have_a_gradient():
    query, key, value = (jnp.asarray(normal(1, 6, HEADS, SIZE, seed=seed)) for seed in range(3))
    mask = Mask(jnp.ones((1, 1, 6), bool))
    layers = {"to_query": linear(1), "to_key": linear(2)}

    def total(states):
        mixed = disentangled_attention(query, key, value, mask, distances=DISTANCES, states=states, **layers)
        return (mixed * value).sum()

    states, direction = jnp.asarray(normal(16, HEADS * SIZE)), jnp.asarray(normal(16, HEADS * SIZE, seed=9))
    step = 1e-2 * direction
    total = jax.jit(total)
    slope = (total(states + step) - total(states - step)) / 2e-2
    np.testing.assert_allclose((jax.grad(total)(states) * direction).sum(), slope, rtol=1e-2)


def test_slopes_are_those_of_the_paper():
    np.testing.assert_allclose(slopes_of(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(slopes_of(6), [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
    biases = linear_biases(8, 2, 4000)
    assert biases.shape == (1, 8, 2, 4000)
    assert biases[0, 0, :, 3999].tolist() == [-1999.5, -1999.0]


@pytest.mark.parametrize(("length", "window"), [(300, 9), (130, 33), (50, 60)])
def test_windows_in_blocks_are_those_of_a_mask(length, window):
    query, key, value = (jnp.asarray(normal(2, length, HEADS, SIZE, seed=seed)) for seed in range(3))
    real = (jnp.arange(length)[None] < jnp.asarray([length, length - 20])[:, None])[:, None]
    near = jnp.abs(jnp.arange(length)[:, None] - jnp.arange(length)[None]) < window
    expected = attention(query, key, value, mask=real & near[None], scale=0.5)
    found = jax.jit(partial(local_attention, window=window, scale=0.5))(query, key, value, mask=real)
    for row, end in enumerate((length, length - 20)):
        np.testing.assert_allclose(found[row, :end], expected[row, :end], atol=1e-5)


def test_the_scores_of_blocks_are_counted():
    assert scores_of(8192, causal=False, window=65) == 8192 * 3 * 64
    assert scores_of(300, causal=False, window=9) == 10 * 3 * LEAST_BLOCK**2
    assert scores_of(300, causal=True, window=9) == scores_of(300, causal=False, window=0) == 300**2
