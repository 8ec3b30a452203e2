"""The head of a model that has none yet."""

import jax
import jax.numpy as jnp
from flax import nnx

from flax_rerank.params import shapes_of
from flax_rerank.training.lora import is_head


def new_head(
    module: nnx.Module, key: jax.Array, *, scale: float = 0.02, row: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The parameters of a head as training begins, float32, by their dotted paths.

    Args:
        module: the model with that head, abstract or not.
        key: for the weights, which are normal; biases are 0, and scales of norms 1.
        scale: their standard deviation (Hugging Face's `initializer_range`).
        row: float32 [D]; every row of a decoder's head starts as this one. FlagEmbedding takes that of "Yes" in the
            language model's head.
    """
    head = {path: shape for path, shape in shapes_of(module).items() if is_head(path)}
    if row is not None:
        return {path: jnp.broadcast_to(row, shape) for path, shape in head.items()}
    return {
        path: jnp.zeros(shape)
        if path.endswith(".bias")
        else jnp.ones(shape)
        if path.endswith(".scale")
        else scale * jax.random.normal(jax.random.fold_in(key, index), shape)
        for index, (path, shape) in enumerate(head.items())
    }
