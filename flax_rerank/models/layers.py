"""The layers that encoders and decoders share.

Parameters are made as zeros: weights come from a checkpoint, and models are built under `nnx.eval_shape`,
where nothing is allocated. Each carries the logical names of its axes as metadata (`axes`: "vocab", "embed",
"heads", "kv_heads", "mlp", "layers", or None), by which it can be sharded. They are stored in one dtype and cast to
the one that is computed in where they are used (see `flax_rerank.dtypes`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flax_rerank.dtypes import DTypes

Axes = tuple[str | None, ...]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
}


def require_activation(name: str) -> None:
    """Raise ValueError if `name` is no known activation."""
    if name not in ACTIVATIONS:
        raise ValueError(f"hidden_act {name!r} is not supported; known: {', '.join(ACTIVATIONS)}")


def parameter(shape: tuple[int, ...], axes: Axes, dtypes: DTypes) -> nnx.Param:
    """A parameter of the stored dtype, with the logical names of its axes."""
    return nnx.Param(jnp.zeros(shape, dtypes.stored), axes=axes)


class Linear(nnx.Module):
    """`x @ kernel + bias`, with a kernel of shape [in, out]."""

    def __init__(
        self, in_features: int, out_features: int, axes: Axes, dtypes: DTypes, *, use_bias: bool = True
    ) -> None:
        self.kernel = parameter((in_features, out_features), axes, dtypes)
        self.bias = parameter((out_features,), axes[1:], dtypes) if use_bias else None
        self.dtypes = dtypes

    def __call__(self, x: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
        """The product and the bias, summed and rounded once: to `dtype`, by default the computed one."""
        kernel = self.kernel[...].astype(self.dtypes.computed)
        y = jnp.matmul(x, kernel, preferred_element_type=self.dtypes.summed)  # [..., out]
        if self.bias is not None:
            y = y + align(self.bias[...].astype(y.dtype), y)
        return y.astype(dtype or self.dtypes.computed)


class Embed(nnx.Module):
    """A table of shape [entries, features]. What is taken from it has the computed dtype."""

    def __init__(self, entries: int, features: int, axes: Axes, dtypes: DTypes) -> None:
        self.embedding = parameter((entries, features), axes, dtypes)
        self.dtypes = dtypes

    def __call__(self, ids: jax.Array) -> jax.Array:
        return jnp.take(self.embedding[...], ids, axis=0, mode="clip").astype(self.dtypes.computed)


class LayerNorm(nnx.Module):
    """Layer normalisation (Ba et al., 2016) over the last axis, in float32. The result has the computed dtype."""

    def __init__(self, features: int, epsilon: float, dtypes: DTypes, *, use_bias: bool = True) -> None:
        self.scale = parameter((features,), (None,), dtypes)
        self.bias = parameter((features,), (None,), dtypes) if use_bias else None
        self.epsilon = epsilon
        self.dtypes = dtypes

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon)
        y = y * align(self.scale[...].astype(jnp.float32), y)
        if self.bias is not None:
            y = y + align(self.bias[...].astype(jnp.float32), y)
        return y.astype(self.dtypes.computed)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation (Zhang and Sennrich, 2019) over the last axis, in float32. The result has the
    computed dtype."""

    def __init__(self, features: int, epsilon: float, offset: float, dtypes: DTypes) -> None:
        self.scale = parameter((features,), (None,), dtypes)
        self.epsilon = epsilon
        self.offset = offset
        self.dtypes = dtypes

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        mean_square = jnp.square(x).mean(axis=-1, keepdims=True)
        y = x * jax.lax.rsqrt(mean_square + self.epsilon)
        y = y * align(self.scale[...].astype(jnp.float32) + self.offset, y)
        return y.astype(self.dtypes.computed)


def align(param: jax.Array, like: jax.Array) -> jax.Array:
    """`param` with leading axes of size one, as many as `like` has more: for strict rank promotion."""
    return param.reshape((1,) * (like.ndim - param.ndim) + param.shape)


def stack(make_layer: Callable[[], nnx.Module], depth: int, axis: str | None = "layers") -> nnx.Module:
    """One module whose parameters carry a leading axis of `depth` layers, with the logical name `axis`."""
    layers = nnx.vmap(lambda _: make_layer(), in_axes=0, out_axes=0)(jnp.arange(depth))
    for _, param in nnx.to_flat_state(nnx.state(layers)):
        param.set_metadata(axes=(axis, *param.get_metadata("axes")))
    layers.remat = False  # type: ignore[attr-defined]  # see `run_stack`
    return layers


def run_stack(
    layers: nnx.Module,
    start: int,
    stop: int,
    step: Callable[[Any, jax.Array, Any], Any],
    carry: Any,
) -> Any:
    """Run `carry = step(layer, index, carry)` for the layers [start, stop) of a stack, in one loop.

    Each trip takes its layer out of the stack by index: the program has one layer's size whatever the
    depth, and a TPU reads the layer where it lies. (A CPU copies it.) Differentiated, each trip adds to its own
    layer's part of the gradient. Where `layers.remat` is set, only `carry` is kept for that and trips are run again
    (Chen et al., 2016).
    """
    if start == stop:
        return carry
    graphdef, params = nnx.split(layers)

    def trip(index: jax.Array, params: nnx.State, carry: Any) -> Any:
        return step(layer_of(nnx.merge(graphdef, params), index), index, carry)

    if layers.remat:  # type: ignore[attr-defined]
        trip = jax.checkpoint(trip, prevent_cse=False)
    return jax.lax.fori_loop(start, stop, lambda index, carry: trip(index, params, carry), carry)


def layer_of(layers: nnx.Module, index: jax.Array | int) -> nnx.Module:
    """One layer of a stack."""
    graphdef, params = nnx.split(layers)
    return nnx.merge(graphdef, jax.tree.map(lambda p: jax.lax.dynamic_index_in_dim(p, index, keepdims=False), params))


def pick(x: jax.Array, at: jax.Array | None) -> jax.Array:
    """One position of each row, [B, 1, ...], where `at` is int32 [B]; all of `x`, [B, L, ...], where it is None."""
    return x if at is None else jnp.take_along_axis(x, at.reshape(-1, *(1,) * (x.ndim - 1)), axis=1)
