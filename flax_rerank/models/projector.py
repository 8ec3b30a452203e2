"""The head of a listwise reranker: vectors of the tokens that mark passages and query."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx

from flax_rerank.dtypes import DTypes
from flax_rerank.models.layers import Linear
from flax_rerank.models.readout import Readout

WIDTH = 512  # of a vector
PASSAGES = 125  # of a row at most


class Projector(nnx.Module):
    """Two linear layers with a ReLU between, in float32 (jina-reranker-v3, Wang et al., 2025)."""

    def __init__(self, hidden_size: int, dtypes: DTypes) -> None:
        dtypes = replace(dtypes, computed=jnp.float32)
        self.dense = Linear(hidden_size, hidden_size // 2, ("embed", None), dtypes, use_bias=False)
        self.out_proj = Linear(hidden_size // 2, WIDTH, ("embed", None), dtypes, use_bias=False)

    def __call__(self, states: jax.Array, input_ids: jax.Array, readout: Readout) -> jax.Array:
        """The vectors of a row's passages, in order, and of its query.

        Args:
            states: [B, L, D].
            input_ids: int32 [B, L].
            readout: names the tokens that mark a passage and the query.

        Returns:
            float32 [B, (PASSAGES + 1) * WIDTH]; those of passages that a row does not have mean nothing.
        """
        passage, query = readout.markers
        length = input_ids.shape[1]
        back = length - jnp.arange(length)[None]  # [1, L]
        # The first ones are the largest, and top_k gives these in order.
        _, places = jax.lax.top_k(jnp.where(input_ids == passage, back, 0), min(PASSAGES, length))
        places = jnp.pad(places, ((0, 0), (0, PASSAGES - places.shape[1])))
        of_query = jnp.argmax(jnp.where(input_ids == query, back, 0), axis=1)[:, None]  # [B, 1]
        places = jnp.concatenate([places, of_query], axis=1)  # [B, P + 1]
        marked = jnp.take_along_axis(states, places[..., None], axis=1).astype(jnp.float32)  # [B, P + 1, D]
        vectors = self.out_proj(jax.nn.relu(self.dense(marked)))  # [B, P + 1, W]
        return vectors.reshape(vectors.shape[0], -1)
