"""Low-rank adapters (LoRA; Hu et al., 2021) of the stored parameters.

The factors of the parameter `layers.mlp.up_proj.kernel` are `layers.mlp.up_proj.kernel.lora_a` [..., in, rank] and
`....lora_b` [..., rank, out], with the parameter's axis of layers in front: PEFT's `lora_A.weight` and
`lora_B.weight` of each layer, transposed. A head with a row [D] for each scored layer counts as that many matrices
[D, 1].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from flax_rerank.params import Shape

HEAD = "head"
DOWN, UP = ".lora_a", ".lora_b"


@dataclass(frozen=True)
class LoRASettings:
    """Which parameters get factors, and of what kind.

    Attributes:
        rank: of the factors.
        alpha: the update is `alpha / rank` times their product.
        dropout: share of the input features that an adapter does not see in a step. PEFT draws them anew for every
            token; here all tokens of a micro batch share them, since the factors are added to the kernel.
        targets: ends of parameter paths, as "q_proj" or "layers.mlp.up_proj.kernel"; None for all kernels of the
            layers.
        heads: the head is trained as a whole besides.
    """

    rank: int = 64
    alpha: float = 16.0
    dropout: float = 0.1
    targets: tuple[str, ...] | None = None
    heads: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"rank {self.rank} must be at least 1, and dropout {self.dropout} in [0, 1)")


@partial(jax.tree_util.register_dataclass, data_fields=("weight", "down", "up"), meta_fields=("scale",))
@dataclass(frozen=True)
class LowRank:
    """`weight + scale * down @ up`, in the place of a parameter's array. The sum is made where it is used: in the
    loop over the layers for one of them, so that neither it nor its gradient has the size of the stack."""

    weight: jax.Array
    down: jax.Array
    up: jax.Array
    scale: float

    def __getitem__(self, key: Any) -> jax.Array:
        update = jnp.matmul(self.down, self.up, precision="highest") * self.scale
        return (self.weight.astype(update.dtype) + update.reshape(self.weight.shape))[key]


def target_paths(shapes: Mapping[str, Shape], settings: LoRASettings) -> list[str]:
    """The parameters that get factors.

    Args:
        shapes: of all parameters, by their dotted paths.
        settings: of the adapter.

    Raises:
        ValueError: a target that no kernel's path ends with; a head that has factors and is trained as a whole.
    """
    adaptable = [path for path in shapes if path == HEAD or path.endswith(".kernel")]
    if settings.targets is None:
        return [path for path in adaptable if path.startswith("layers.")]
    chosen = {target: [path for path in adaptable if _ends_with(path, target)] for target in settings.targets}
    missing = [target for target, paths in chosen.items() if not paths]
    if missing:
        raise ValueError(f"LoRA targets {missing} match none of {', '.join(adaptable)}")
    paths = [path for path in adaptable if any(path in found for found in chosen.values())]
    if settings.heads and any(is_head(path) for path in paths):
        raise ValueError("the head is trained as a whole, so it cannot be a LoRA target too")
    return paths


def is_head(path: str) -> bool:
    """Whether a parameter belongs to the head."""
    return path.partition(".")[0] == HEAD


def trained_shapes(shapes: Mapping[str, Shape], settings: LoRASettings | None) -> dict[str, Shape]:
    """Shapes of what is trained: all parameters, or the factors and, if asked for, the heads."""
    if settings is None:
        return dict(shapes)
    trained = {path: shape for path, shape in shapes.items() if settings.heads and is_head(path)}
    for path in target_paths(shapes, settings):
        *stack, into, out = (*shapes[path], 1) if path == HEAD else shapes[path]
        trained |= {path + DOWN: (*stack, into, settings.rank), path + UP: (*stack, settings.rank, out)}
    return trained


def trained_shardings(
    shardings: Mapping[str, NamedSharding], trained: Mapping[str, Shape]
) -> dict[str, NamedSharding]:
    """Where each trained parameter goes: a factor as the axes of the parameter that it has."""
    found = {}
    for path in trained:
        base = shardings[_base(path)]
        spec = (*base.spec, None) if _base(path) == HEAD else base.spec
        *stack, into, out = spec if path != _base(path) else (None, None)
        if path.endswith(DOWN):
            found[path] = NamedSharding(base.mesh, PartitionSpec(*stack, into, None))
        elif path.endswith(UP):
            found[path] = NamedSharding(base.mesh, PartitionSpec(*stack, None, out))
        else:
            found[path] = base
    return found


def start(
    params: Mapping[str, jax.Array],
    shardings: Mapping[str, NamedSharding],
    settings: LoRASettings | None,
    key: jax.Array,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Parameters as training begins: those that are trained, and those that stay as they are.

    The first factors are uniform within `1 / sqrt(in)`, the second ones zero, as in PEFT. All that is trained is
    float32.

    Args:
        params: all parameters of a model, by their dotted paths. Those that are trained whole may be used no more:
            the training step donates them.
        shardings: of these.
        settings: of the adapter; None trains all parameters.
        key: for the first factors.
    """
    trained = trained_shapes({path: array.shape for path, array in params.items()}, settings)
    placed = trained_shardings(shardings, trained)

    factors = [path for path in trained if path not in params]

    def first(key: jax.Array) -> dict[str, jax.Array]:
        values = {}
        for index, path in enumerate(factors):
            bound = 0.0 if path.endswith(UP) else 1.0 / math.sqrt(trained[path][-2])
            folded = jax.random.fold_in(key, index)
            values[path] = jax.random.uniform(folded, trained[path], minval=-bound, maxval=bound)
        return values

    made = jax.jit(first, out_shardings={path: placed[path] for path in factors})(key)
    values = {path: params[path].astype(jnp.float32) if path in params else made[path] for path in trained}
    return values, {path: array for path, array in params.items() if path not in trained}


def combine(
    trained: Mapping[str, jax.Array],
    frozen: Mapping[str, jax.Array],
    settings: LoRASettings | None,
    key: jax.Array | None = None,
) -> dict[str, Any]:
    """The parameters of the model, by their dotted paths; with dropout if there is a key."""
    whole = {path: array for path, array in trained.items() if _base(path) == path}
    params: dict[str, Any] = {**frozen, **whole}
    if settings is None:
        return params
    for index, path in enumerate(path.removesuffix(UP) for path in trained if path.endswith(UP)):
        down = trained[path + DOWN]
        if settings.dropout and key is not None:
            seen = jax.random.bernoulli(jax.random.fold_in(key, index), 1.0 - settings.dropout, (*down.shape[:-1], 1))
            down = jnp.where(seen, down / (1.0 - settings.dropout), 0.0)
        params[path] = LowRank(params[path], down, trained[path + UP], settings.alpha / settings.rank)
    return params


def merge(
    trained: Mapping[str, jax.Array], frozen: Mapping[str, jax.Array], settings: LoRASettings | None
) -> dict[str, jax.Array]:
    """The parameters of the model after training, with the factors added to what they belong to."""
    params = combine(trained, frozen, settings)
    return {
        path: value[...].astype(value.weight.dtype) if isinstance(value, LowRank) else value
        for path, value in params.items()
    }


def _base(path: str) -> str:
    return path.removesuffix(DOWN).removesuffix(UP)


def _ends_with(path: str, target: str) -> bool:
    return any(name == target or name.endswith(f".{target}") for name in (path, path.removesuffix(".kernel")))
