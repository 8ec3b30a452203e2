"""Disentangled attention (DeBERTa; He et al., 2021): scores of contents, and of contents against distances."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from flax_rerank.models.attention import Mask, attention
from flax_rerank.models.layers import Linear


@dataclass(frozen=True)
class Distances:
    """How distances between tokens count.

    Attributes:
        buckets: B; distances up to B / 2 have an embedding each, longer ones share some, by their logarithm.
        longest: the distance whose bucket is the last.
        to_keys, to_queries: whether queries are multiplied with the keys of distances, and keys with their queries.
    """

    buckets: int
    longest: int
    to_keys: bool
    to_queries: bool


def buckets_of(distances: Distances, length: int) -> np.ndarray:
    """The embedding of each distance from 1 - M to M - 1: int32 [2M - 1], from 0 to 2B - 1."""
    away = np.arange(1 - length, length)
    half = distances.buckets // 2
    far = np.maximum(np.abs(away), half) / half
    logarithm = np.ceil(np.log(far) / math.log((distances.longest - 1) / half) * (half - 1)) + half
    buckets = np.where(np.abs(away) <= half, away, np.sign(away) * logarithm)
    return np.clip(buckets + distances.buckets, 0, 2 * distances.buckets - 1).astype(np.int32)


def disentangled_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, *, distances: Distances, states: jax.Array,
    to_query: Linear, to_key: Linear,
) -> jax.Array:  # fmt: skip
    """Attend from the first L positions to all M.

    Args:
        query: [B, L, N, H].
        key, value: [B, M, N, H].
        mask: where attention is allowed.
        distances: how they count.
        states: of their embeddings, [2B, D].
        to_query, to_key: the layer's projections, which distances share with contents.

    Returns:
        [B, L, N, H].
    """
    heads, size = query.shape[2:]
    scale = (size * (1 + distances.to_keys + distances.to_queries)) ** -0.5
    buckets = buckets_of(distances, key.shape[1])
    bias = jnp.zeros((), jnp.float32)
    if distances.to_keys:
        keys = to_key(states).reshape(-1, heads, size)[buckets[::-1]]  # [2M - 1, N, H]
        scores = jnp.einsum("blnh,snh->bnls", query, keys, preferred_element_type=jnp.float32)
        bias = _skew(scores, key.shape[1])  # [B, N, L, M]
    if distances.to_queries:
        queries = to_query(states).reshape(-1, heads, size)[buckets]  # [2M - 1, N, H]
        scores = jnp.einsum("bmnh,snh->bnms", key, queries, preferred_element_type=jnp.float32)
        bias = bias + _skew(scores, query.shape[1]).swapaxes(2, 3)
    return attention(query, key, value, mask=mask.dense, scale=scale, bias=bias * scale)


def _skew(scores: jax.Array, columns: int) -> jax.Array:
    """Of row i of `scores`, [B, N, rows, 2M - 1], the columns from M - 1 - i on: [B, N, rows, columns]. Without a
    gather: one element after the other, rows that are shorter by one move by one each."""
    batch, heads, rows, width = scores.shape
    start = (width - 1) // 2
    flat = jnp.pad(scores.reshape(batch, heads, -1), ((0, 0), (0, 0), (0, start)))[..., start:]
    return flat[..., : rows * (width - 1)].reshape(batch, heads, rows, width - 1)[..., :columns]
