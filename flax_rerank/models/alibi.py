"""Attention with linear biases (Press et al., 2022), to both sides."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def slopes_of(heads: int) -> np.ndarray:
    """float32 [N]. Where N is no power of two, those of the power below, then every second one of the power above."""
    below = 1 << (heads.bit_length() - 1)
    slopes = _powers(below)
    return np.asarray([*slopes, *_powers(2 * below)[::2][: heads - below]], np.float32)


def linear_biases(heads: int, queries: int, keys: int) -> jax.Array:
    """What is added to the scores: float32 [1, N, L, M] for the first L positions of M. In float32, since half
    precision has no odd numbers above 2048."""
    distances = jnp.abs(jnp.arange(queries)[:, None] - jnp.arange(keys)[None]).astype(jnp.float32)  # [L, M]
    return -jnp.asarray(slopes_of(heads))[None, :, None, None] * distances[None, None]


def _powers(heads: int) -> list[float]:
    start = 2.0 ** -(2.0 ** -(math.log2(heads) - 3))
    return [start ** (power + 1) for power in range(heads)]
