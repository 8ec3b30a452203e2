"""The layers that encoders and decoders share.

Parameters are made as zeros: weights come from a checkpoint, and models are built under `nnx.eval_shape`,
where nothing is allocated. Each carries the logical names of its axes as metadata (`axes`: "vocab", "embed",
"heads", "kv_heads", "mlp", "layers", or None), by which it can be sharded. Activations have the dtype of the
parameters; norms compute in float32.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Axes = tuple[str | None, ...]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}

# On CPU, XLA adds the terms of a product in order, as PyTorch does, where the number of outputs is a multiple of
# this; elsewhere it adds even and odd terms apart. Other products are padded to it, which keeps scores within 1e-4 of
# PyTorch's in ill-conditioned models too. Only models made for tests have such widths: others pay nothing.
IN_ORDER = 64


def require_activation(name: str) -> None:
    """Raise ValueError if `name` is no known activation."""
    if name not in ACTIVATIONS:
        raise ValueError(f"hidden_act {name!r} is not supported; known: {', '.join(ACTIVATIONS)}")


class Linear(nnx.Module):
    """`x @ kernel + bias`, with a kernel of shape [in, out]."""

    def __init__(self, in_features: int, out_features: int, axes: Axes, *, use_bias: bool = True) -> None:
        self.kernel = nnx.Param(jnp.zeros((in_features, out_features)), axes=axes)
        self.bias = nnx.Param(jnp.zeros(out_features), axes=axes[1:]) if use_bias else None

    def __call__(self, x: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
        """The product, summed in float32 and rounded once, to `dtype` or that of `x`."""
        kernel = self.kernel[...]
        width = kernel.shape[1]
        if width % IN_ORDER:
            kernel = jnp.pad(kernel, ((0, 0), (0, -width % IN_ORDER)))
        y = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)[..., :width]
        if self.bias is not None:
            y = y + align(self.bias[...].astype(jnp.float32), y)
        return y.astype(dtype or x.dtype)


class Embed(nnx.Module):
    """A table of shape [entries, features]."""

    def __init__(self, entries: int, features: int, axes: Axes) -> None:
        self.embedding = nnx.Param(jnp.zeros((entries, features)), axes=axes)

    def __call__(self, ids: jax.Array) -> jax.Array:
        return jnp.take(self.embedding[...], ids, axis=0, mode="clip")


class LayerNorm(nnx.Module):
    """Layer normalisation (Ba et al., 2016) over the last axis, in float32. The result has the parameters' dtype."""

    def __init__(self, features: int, epsilon: float) -> None:
        self.scale = nnx.Param(jnp.zeros((features,)), axes=(None,))
        self.bias = nnx.Param(jnp.zeros((features,)), axes=(None,))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        mean = y.mean(axis=-1, keepdims=True)
        rstd = jax.lax.rsqrt(jnp.square(y - mean).mean(axis=-1, keepdims=True) + self.epsilon)
        # The order of operations is PyTorch's: rounding differs otherwise, by up to 1e-4 in a final score.
        y = (y * rstd - mean * rstd) * align(self.scale[...].astype(jnp.float32), y)
        return (y + align(self.bias[...].astype(jnp.float32), y)).astype(self.scale.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation (Zhang and Sennrich, 2019) over the last axis, in float32."""

    def __init__(self, features: int, epsilon: float, offset: float) -> None:
        self.scale = nnx.Param(jnp.zeros((features,)), axes=(None,))
        self.epsilon = epsilon
        self.offset = offset

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.epsilon)
        return (y * align(self.scale[...].astype(jnp.float32) + self.offset, y)).astype(x.dtype)


def align(param: jax.Array, like: jax.Array) -> jax.Array:
    """`param` with leading axes of size one, as many as `like` has more: for strict rank promotion."""
    return param.reshape((1,) * (like.ndim - param.ndim) + param.shape)


def stack(make_layer: Callable[[], nnx.Module], depth: int) -> nnx.Module:
    """One module whose parameters carry a leading axis of `depth` layers."""
    layers = nnx.vmap(lambda _: make_layer(), in_axes=0, out_axes=0)(jnp.arange(depth))
    for _, param in nnx.to_flat_state(nnx.state(layers)):
        param.set_metadata(axes=("layers", *param.get_metadata("axes")))
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
    depth, and a TPU reads the layer where it lies. (A CPU copies it.)
    """
    if start == stop:
        return carry
    return jax.lax.fori_loop(start, stop, lambda index, carry: step(layer_of(layers, index), index, carry), carry)


def layer_of(layers: nnx.Module, index: jax.Array | int) -> nnx.Module:
    """One layer of a stack."""
    graphdef, params = nnx.split(layers)
    return nnx.merge(graphdef, jax.tree.map(lambda p: jax.lax.dynamic_index_in_dim(p, index, keepdims=False), params))
