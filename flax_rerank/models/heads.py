"""The heads of classifiers."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx

from flax_rerank.dtypes import DTypes
from flax_rerank.models.layers import ACTIVATIONS, LayerNorm, Linear


@dataclass(frozen=True)
class DenseHead:
    """A dense layer, an activation, a norm if there is one, and a projection to one label.

    Attributes:
        activation: one of `ACTIVATIONS`.
        features: of the dense layer; None for as many as the body has.
        use_bias: of the dense layer.
        norm_epsilon: of the layer normalisation; None for none.
        norm_bias: of the same.
        label_bias: of the projection.
    """

    activation: str = "tanh"
    features: int | None = None
    use_bias: bool = True
    norm_epsilon: float | None = None
    norm_bias: bool = True
    label_bias: bool = True


class ClassificationHead(nnx.Module):
    """A `DenseHead` with its parameters, in float32."""

    def __init__(self, kind: DenseHead, hidden_size: int, dtypes: DTypes) -> None:
        dtypes = replace(dtypes, computed=jnp.float32)
        features = kind.features or hidden_size
        self.dense = Linear(hidden_size, features, ("embed", None), dtypes, use_bias=kind.use_bias)
        if kind.norm_epsilon is not None:
            self.norm = LayerNorm(features, kind.norm_epsilon, dtypes, use_bias=kind.norm_bias)
        self.out_proj = Linear(features, 1, ("embed", None), dtypes, use_bias=kind.label_bias)
        self.kind = kind

    def __call__(self, state: jax.Array) -> jax.Array:
        """Logits, [B, 1], of one state of each row, [B, D]."""
        hidden = ACTIVATIONS[self.kind.activation](self.dense(state.astype(jnp.float32)))
        if self.kind.norm_epsilon is not None:
            hidden = self.norm(hidden)
        return self.out_proj(hidden)


def mean_of_tokens(x: jax.Array, lengths: jax.Array) -> jax.Array:
    """The mean of the first `lengths` positions of each row, float32 [B, D], of `x`, [B, L, D]."""
    real = jnp.arange(x.shape[1])[None] < lengths[:, None]  # [B, L]
    total = jnp.where(real[..., None], x.astype(jnp.float32), 0.0).sum(axis=1)  # [B, D]
    return total / lengths[:, None].astype(jnp.float32)
