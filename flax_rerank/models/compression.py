"""Token compression (Li et al., 2024, cost-wise rerankers): passage tokens are averaged in groups."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Compression:
    """Where a decoder compresses passages. Frozen and hashable: a static argument under jit.

    Attributes:
        at: (layer, new length), ascending: after this many layers, the inputs have the new length.
        ratio: passage tokens that become one, each time.
        suffix_length: tokens after the passage.
    """

    at: tuple[tuple[int, int], ...]
    ratio: int
    suffix_length: int


def compress(
    x: jax.Array,
    lengths: jax.Array,
    passage_starts: jax.Array,
    *,
    ratio: int,
    suffix_length: int,
    new_length: int,
) -> tuple[jax.Array, jax.Array]:
    """Average the passage of each row in groups of `ratio` tokens; query and prompt stay.

    Args:
        x: [B, L, D].
        lengths: int32 [B], real tokens.
        passage_starts: int32 [B], where the passage begins.
        ratio: tokens to a group; the last group of a passage may have fewer.
        suffix_length: tokens after the passage (separator and prompt).
        new_length: length of the result, at least the compressed length of every row.

    Returns:
        The states, [B, new_length, D], and the new lengths, int32 [B].
    """
    passages = jnp.maximum(lengths - passage_starts - suffix_length, 0)  # [B]
    groups = -(-passages // ratio)  # [B]
    start, passage, group = (v[:, None, None] for v in (passage_starts, passages, groups))  # [B, 1, 1]
    new = jnp.arange(new_length)[None, :, None]  # [1, new_length, 1]
    old = jnp.arange(x.shape[1])[None, None, :]  # [1, 1, L]
    in_passage = (new >= start) & (new < start + group)  # [B, new_length, 1]
    before_or_after = jnp.where(new < start, new, new - group + passage)
    first = jnp.where(in_passage, start + (new - start) * ratio, before_or_after)
    count = jnp.where(in_passage, jnp.clip(start + passage - first, 1, ratio), 1)
    # Sums of whole tokens, divided afterwards: zeros and ones are exact in every dtype.
    members = ((old >= first) & (old < first + count)).astype(x.dtype)  # [B, new_length, L]
    sums = jnp.einsum("bml,bld->bmd", members, x, preferred_element_type=jnp.float32)
    means = sums / count.astype(jnp.float32)  # [B, new_length, D]
    return means.astype(x.dtype), lengths - passages + groups
