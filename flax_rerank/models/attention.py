"""Scaled dot-product attention: in plain JAX, and by a kernel where that is faster."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from flax_rerank.models.splash import splash_attention_on

# From this length on the scores of a step are larger than a TPU keeps on the chip: plain JAX writes them to memory and
# reads them twice, in float32.
SPLASH_FROM = 256
# Smaller blocks of local attention multiply too little at a time.
LEAST_BLOCK = 32


@dataclass(frozen=True)
class Mask:
    """Where attention is allowed.

    Attributes:
        dense: bool, [B or 1, L or 1, M]; True where it is allowed.
        lengths: int32 [B], the same for a kernel: no position sees those from there on. None where the causal mask
            hides them, or all may be seen.
        starts: int32 [B], the same for those before there; None if all may be seen.
        causal: no position sees a later one.
        window: int32 [], how many positions back each sees, itself included, and as many ahead if not causal; None
            for all. `dense` has it in it only if causal.
        windows: the values that `window` may have.
    """

    dense: jax.Array
    lengths: jax.Array | None = None
    starts: jax.Array | None = None
    causal: bool = False
    window: jax.Array | None = None
    windows: tuple[int, ...] = ()


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    *,
    scale: float,
    softcap: float | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """As `attention`; by a kernel if inputs are long and traced for TPUs (`jax.sharding.use_abstract_mesh`). The
    kernel takes no bias and no prefix. Elsewhere positions that see a few on both sides are attended to in blocks."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    on_tpu = device is not None and device.device_kind.startswith("TPU")
    length = query.shape[1]
    ways: list[Callable[..., jax.Array]]
    if on_tpu and length >= SPLASH_FROM and bias is None and mask.starts is None:
        kernel = functools.partial(
            splash_attention_on, mesh, lengths=mask.lengths, causal=mask.causal, scale=scale, softcap=softcap
        )
        ways = [functools.partial(kernel, window=window) for window in mask.windows or (0,)]
    elif mask.windows and not mask.causal:
        local = functools.partial(local_attention, mask=mask.dense, scale=scale, softcap=softcap)
        ways = [functools.partial(local, window=window) for window in mask.windows]
    else:
        return attention(query, key, value, mask=mask.dense, scale=scale, softcap=softcap, bias=bias)
    if len(ways) == 1:
        return ways[0](query, key, value)
    which = jnp.argmax(jnp.asarray(mask.windows) == mask.window)
    return jax.lax.switch(which, ways, query, key, value)


def scores_of(length: int, causal: bool, window: int) -> int:
    """Attention scores that each head computes here, with the masked ones."""
    block = max(window - 1, LEAST_BLOCK)
    if causal or not 0 < window < length or length <= 4 * block:
        return length**2
    return -(-length // block) * 3 * block**2


def local_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array,
    window: int,
    scale: float,
    softcap: float | None = None,
) -> jax.Array:
    """As `attention`, to fewer than `window` positions to either side. Long inputs are cut into blocks, each of which
    attends to itself and to its neighbours: the others are neither multiplied nor masked.

    Args:
        query, key, value: as in `attention`, of the same length.
        mask: bool, [B, 1, L]; True where a position may be seen.
        window: how far a position sees; all, if it is as long as the input.
    """
    batch, length, *_ = query.shape
    block = max(window - 1, LEAST_BLOCK)
    if window >= length:
        return attention(query, key, value, mask=mask, scale=scale, softcap=softcap)
    if length <= 4 * block:
        far = jnp.abs(jnp.arange(length)[:, None] - jnp.arange(length)[None])  # [L, L]
        return attention(query, key, value, mask=mask & (far < window)[None], scale=scale, softcap=softcap)
    blocks = -(-length // block)

    def cut(x: jax.Array, around: int) -> jax.Array:
        """[B, L, ...] to [B * blocks, block, ...], or with `around` blocks on either side of each."""
        pad = (around * block, (blocks + around) * block - length)
        x = jnp.pad(x, ((0, 0), pad, *((0, 0),) * (x.ndim - 2)))
        parts = [x[:, start * block : (start + blocks) * block] for start in range(2 * around + 1)]
        parts = [part.reshape(batch, blocks, block, *x.shape[2:]) for part in parts]
        return jnp.concatenate(parts, axis=2).reshape(batch * blocks, -1, *x.shape[2:])

    near = jnp.abs(jnp.arange(block)[:, None] + block - jnp.arange(3 * block)[None]) < window  # [block, 3 block]
    seen = cut(mask[:, 0], 1)[:, None] & near[None]  # [B * blocks, block, 3 block]
    mixed = attention(cut(query, 0), cut(key, 1), cut(value, 1), mask=seen, scale=scale, softcap=softcap)
    return mixed.reshape(batch, blocks * block, *mixed.shape[2:])[:, :length]


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array,
    scale: float,
    softcap: float | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Attend from every query position to the positions that `mask` allows.

    Heads are grouped (Ainslie et al., 2023): N query heads share K key/value heads, K dividing N. Scores
    and softmax are float32; `softcap` bounds the scores by `softcap * tanh(scores / softcap)` (Gemma 2).

    Args:
        query: [B, L, N, H].
        key: [B, M, K, H].
        value: [B, M, K, H].
        mask: bool, [B or 1, L or 1, M]; True where attention is allowed.
        bias: float32, [B or 1, N, L, M], added to the scores, where each query head has a key head of its own.

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
    if bias is not None:
        scores = scores + bias
    scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
    # Softmax, normalised after the product with the values: that is L x H divisions instead of L x M.
    # The largest score cancels, and so does its gradient: that would divide by how many scores equal it, which may be
    # none where the compiler rounds them a second time in another way.
    largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)  # [B, K, G * L, M]
    sums = jnp.einsum("bklm,bmkh->bklh", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    mixed = (sums / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)  # [B, K, G * L, H]
    mixed = mixed.reshape(batch, kv_heads, groups, length, size)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, size)
