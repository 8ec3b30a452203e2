"""Attention for TPUs that keeps its scores on the chip: JAX's Pallas kernel (splash attention), over a mesh."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from flax_rerank.sharding import DATA, MODEL

LANES = 128
# The scores of a block are the kernel's largest array: 1 MB in float32.
BLOCKS = (512, 384, 256)
# Up to here all scores of a head are one block.
ONE_BLOCK = 640


def splash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    lengths: jax.Array | None,
    causal: bool,
    window: int,
    scale: float,
    softcap: float | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Attend on one device from every position to the positions that it may see.

    Args:
        query: [B, L, N, H].
        key, value: [B, L, K, H], K dividing N.
        lengths: int32 [B]; no position sees those from there on. None if all may be seen.
        causal: no position sees a later one.
        window: how many positions back each sees, itself included, and as many ahead if not causal; 0 for all.
        scale: factor of the scores.
        softcap: bound of the scores.
        interpret: run the kernel's program without a TPU.

    Returns:
        [B, L, N, H] in the dtype of `query`.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        BlockSizes,
        CausalMask,
        FullMask,
        LocalMask,
        MultiHeadMask,
        SegmentIds,
        make_splash_mha_single_device,
    )

    batch, length, heads, _ = query.shape
    block = block_size(length)
    padded = -(-length // block) * block

    def arrange(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, padded - length), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    shape = padded, padded
    mask: Any
    if 0 < window < length:
        mask = LocalMask(shape, (window - 1, 0 if causal else window - 1), offset=0)
    else:
        mask = CausalMask(shape) if causal else FullMask(shape)
    segments = None
    if lengths is not None or (not causal and padded > length):
        ends = jnp.full(batch, length) if lengths is None else lengths
        hidden = (jnp.arange(padded)[None] >= ends[:, None]).astype(jnp.int32)
        # Padding sees padding: a row that saw nothing would not be finite, nor would what later layers make of it.
        segments = SegmentIds(q=hidden, kv=hidden)
    kernel = make_splash_mha_single_device(
        MultiHeadMask([mask] * heads),
        block_sizes=BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            # Of the gradient by keys and values, and by queries.
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )
    scaled = (query.astype(jnp.float32) * scale).astype(query.dtype)
    mixed = jax.vmap(kernel, in_axes=(0, 0, 0, None if segments is None else 0))(
        arrange(scaled), arrange(key), arrange(value), segments
    )
    return mixed.transpose(0, 2, 1, 3)[:, :length]


def block_size(length: int) -> int:
    """The side of a block: it divides the padded length, which is as short as can be."""
    padded = -(-length // LANES) * LANES
    return padded if padded <= ONE_BLOCK else min(BLOCKS, key=lambda block: (-(-length // block) * block, -block))


def kernel_scores(length: int, causal: bool, window: int) -> int:
    """Attention scores that the kernel computes for each head: blocks of which some are visible, as a whole."""
    block = block_size(length)
    blocks = -(-length // block)
    most = -(-(window + block - 1) // block) if 0 < window < length else blocks  # blocks on one side, its own included
    ahead = range(blocks, 0, -1) if not causal else (1,) * blocks
    return block**2 * sum(min(row + 1, most) + min(left, most) - 1 for row, left in enumerate(ahead))


def keys_read_again(length: int, heads: int, kv_heads: int, causal: bool, window: int) -> int:
    """Keys that the kernel reads for a row beyond each of them once. With several blocks, each head reads those that
    each of its blocks sees, also where heads share them."""
    block = block_size(length)
    return heads * kernel_scores(length, causal, window) // block - kv_heads * length if length > block else 0


def splash_attention_on(
    mesh: Mesh | AbstractMesh,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    lengths: jax.Array | None,
    **settings: Any,
) -> jax.Array:
    """`splash_attention` on the devices of a mesh with the axes "data" and "model": each has its rows and heads.

    Heads that do not divide over "model" are on all of its devices, and so is a single key/value head.
    """
    parts = mesh.shape[MODEL]
    heads, kv_heads = query.shape[2], key.shape[2]
    if kv_heads > 1 and kv_heads % parts and heads % parts == 0:
        key, value = (jnp.repeat(x, heads // kv_heads, axis=2) for x in (key, value))
        kv_heads = heads
    whole = PartitionSpec(DATA, None, None, None)
    split = PartitionSpec(DATA, None, MODEL, None) if heads % parts == 0 else whole
    of_keys = split if kv_heads % parts == 0 else whole
    rows = () if lengths is None else (lengths,)

    def attend(query: jax.Array, key: jax.Array, value: jax.Array, *rows: jax.Array) -> jax.Array:
        return splash_attention(query, key, value, lengths=rows[0] if rows else None, **settings)

    return jax.shard_map(
        attend,
        mesh=mesh,
        in_specs=(split, of_keys, of_keys, *(PartitionSpec(DATA) for _ in rows)),
        out_specs=split,
        check_vma=False,
    )(query, key, value, *rows)
