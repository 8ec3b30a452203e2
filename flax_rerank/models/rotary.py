"""Rotary position embeddings (Su et al., 2021) and the ways to stretch them over longer inputs."""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

DYNAMIC_MULTIPLE = 8


@dataclass(frozen=True)
class RopeScaling:
    """How frequencies change for inputs longer than those of pretraining.

    `linear` divides all frequencies by `factor`. `dynamic` raises the base with the length of the input once
    that exceeds `original_max_position_embeddings`. `llama3` divides the low frequencies by `factor`, keeps
    the high ones and blends in between. `ntk` multiplies the base by `factor` and divides all frequencies by
    factor^(2/H), whatever the length of the input.
    """

    kind: Literal["linear", "dynamic", "llama3", "ntk"]
    factor: float
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0


def rotary_angles(
    length: int,
    lengths: jax.Array,
    head_dim: int,
    theta: float,
    scaling: RopeScaling | None,
    first: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the angle of every position and frequency.

    Args:
        length: L, of the positions 0 to L - 1.
        lengths: int32 [B], real tokens of each row; only `dynamic` scaling looks at them.
        first: int32 [B], the first position of each row; None for 0.

    Returns:
        float32 [B or 1, L, 1, H / 2], twice; B for `dynamic` scaling, and with `first`.
    """
    exponents = np.arange(0, head_dim, 2) / head_dim  # [H / 2]
    if scaling is not None and scaling.kind == "dynamic":
        frequencies = _dynamic_frequencies(lengths, exponents, head_dim, theta, scaling)
    else:
        frequencies = jnp.asarray(_frequencies(exponents, head_dim, theta, scaling))[None]
    positions = jnp.arange(length, dtype=jnp.float32)[None, :, None]  # [1, L, 1]
    if first is not None:
        positions = positions + first.astype(jnp.float32)[:, None, None]  # [B, L, 1]
    angles = positions * frequencies[:, None, :]  # [B or 1, L, H / 2]
    return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turn each head's vector, the first half of it against the second. x is [B, L, N, H]."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)  # [B, L, N, H / 2]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def _frequencies(exponents: np.ndarray, head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """float32 [H / 2]."""
    if scaling is not None and scaling.kind == "ntk":
        theta *= scaling.factor
        scaling = RopeScaling("linear", scaling.factor ** (2 / head_dim))
    # Models were trained with powers that are rounded before the division. With frequencies rounded once, as written
    # in the paper, scores of an ill-conditioned test model are 1.2e-4 from the exact ones; with these, 0.9e-4.
    frequencies = np.float32(1.0) / (theta**exponents).astype(np.float32)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / np.float32(scaling.factor)
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_position_embeddings / wavelengths
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return (frequencies * (keep + (1.0 - keep) / scaling.factor)).astype(np.float32)


def _dynamic_frequencies(
    lengths: jax.Array, exponents: np.ndarray, head_dim: int, theta: float, scaling: RopeScaling
) -> jax.Array:
    """float32 [B, H / 2]. The reference looks at the padded length of a batch, which it rounds up to a multiple
    of eight; here each row has its own, so that a score does not depend on the rest of the batch."""
    positions = scaling.original_max_position_embeddings
    rounded = -(-lengths // DYNAMIC_MULTIPLE) * DYNAMIC_MULTIPLE
    stretch = scaling.factor * jnp.maximum(rounded, positions).astype(jnp.float32) / positions
    base = theta * (stretch - (scaling.factor - 1)) ** (head_dim / (head_dim - 2))
    return 1.0 / base[:, None] ** jnp.asarray(exponents, jnp.float32)[None]
