"""Scaled dot-product attention: in plain JAX, and by a kernel where that is faster."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from flax_rerank.models.splash import splash_attention_on

# From this length on the scores of a step are larger than a TPU keeps on the chip: plain JAX writes them to memory and
# reads them twice, in float32.
SPLASH_FROM = 256


@dataclass(frozen=True)
class Mask:
    """Where attention is allowed.

    Attributes:
        dense: bool, [B or 1, L or 1, M]; True where it is allowed.
        lengths: int32 [B], the same for a kernel: no position sees those from there on. None where the causal mask
            hides them, or all may be seen.
        causal: no position sees a later one.
        window: int32 [], how many positions back each sees, itself included; None for all.
        windows: the values that `window` may have.
    """

    dense: jax.Array
    lengths: jax.Array | None = None
    causal: bool = False
    window: jax.Array | None = None
    windows: tuple[int, ...] = ()


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, *, scale: float, softcap: float | None = None
) -> jax.Array:
    """As `attention`; by a kernel if inputs are long and traced for TPUs (`jax.sharding.use_abstract_mesh`)."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    if device is None or not device.device_kind.startswith("TPU") or query.shape[1] < SPLASH_FROM:
        return attention(query, key, value, mask=mask.dense, scale=scale, softcap=softcap)
    kernels = [
        functools.partial(
            splash_attention_on, mesh, lengths=mask.lengths, causal=mask.causal, window=window, scale=scale,
            softcap=softcap,
        )
        for window in mask.windows or (0,)
    ]  # fmt: skip
    if len(kernels) == 1:
        return kernels[0](query, key, value)
    which = jnp.argmax(jnp.asarray(mask.windows) == mask.window)
    return jax.lax.switch(which, kernels, query, key, value)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array,
    scale: float,
    softcap: float | None = None,
) -> jax.Array:
    """Attend from every query position to the positions that `mask` allows.

    Heads are grouped (Ainslie et al., 2023): N query heads share K key/value heads, K dividing N. Scores
    and softmax are float32; `softcap` bounds the scores by `softcap * tanh(scores / softcap)` (Gemma 2).

    Args:
        query: [B, L, N, H].
        key: [B, M, K, H].
        value: [B, M, K, H].
        mask: bool, [B or 1, L or 1, M]; True where attention is allowed.

    Returns:
        [B, L, N, H] in the dtype of `value`. A row with nothing allowed is the mean of all values.
    """
    batch, length, heads, size = query.shape
    kv_heads = key.shape[2]
    groups = heads // kv_heads
    # The query heads of a group become further query positions of their key/value head. Groups come before positions:
    # heads that are split over devices stay where they are.
    query = query.reshape(batch, length, kv_heads, groups, size)
    query = query.transpose(0, 3, 1, 2, 4).reshape(batch, groups * length, kv_heads, size)  # [B, G * L, K, H]
    mask = jnp.tile(mask, (1, groups, 1)) if mask.shape[1] > 1 else mask  # [B or 1, G * L or 1, M]
    scores = jnp.einsum("blkh,bmkh->bklm", query, key, preferred_element_type=jnp.float32)  # [B, K, G * L, M]
    scores = scores * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
    # Softmax, normalised after the product with the values: that is L x H divisions instead of L x M.
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))  # [B, K, G * L, M]
    sums = jnp.einsum("bklm,bmkh->bklh", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    mixed = (sums / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)  # [B, K, G * L, H]
    mixed = mixed.reshape(batch, kv_heads, groups, length, size)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, size)
