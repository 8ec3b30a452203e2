"""Token compression (Li et al., 2024, cost-wise rerankers): passage tokens are averaged in groups."""

import jax
import jax.numpy as jnp


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
    passages = jnp.maximum(lengths - passage_starts - suffix_length, 0)
    groups = -(-passages // ratio)
    start, passage, group = (v[:, None, None] for v in (passage_starts, passages, groups))
    new = jnp.arange(new_length)[None, :, None]
    old = jnp.arange(x.shape[1])[None, None, :]
    in_passage = (new >= start) & (new < start + group)
    first = jnp.where(in_passage, start + (new - start) * ratio, jnp.where(new < start, new, new - group + passage))
    count = jnp.where(in_passage, jnp.clip(start + passage - first, 1, ratio), 1)
    # Sums of whole tokens, divided afterwards: zeros and ones are exact in every dtype.
    members = ((old >= first) & (old < first + count)).astype(x.dtype)
    sums = jnp.einsum("bml,bld->bmd", members, x, preferred_element_type=jnp.float32)
    return (sums / count.astype(jnp.float32)).astype(x.dtype), lengths - passages + groups
