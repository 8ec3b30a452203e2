"""AdamW as FlagEmbedding's trainer runs it: decay by parameter, clipping, schedule."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from flax_rerank.field_types import check_field_types
from flax_rerank.settings import setting

CLIP_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class AdamWSettings:
    """How parameters are updated. Names and defaults are those of transformers' TrainingArguments."""

    learning_rate: float = setting(5e-5, "the highest of the schedule", metavar="RATE")
    weight_decay: float = setting(0.0, "of all but biases and norms", metavar="DECAY")
    adam_beta1: float = setting(0.9, "decay of Adam's mean of gradients", metavar="BETA")
    adam_beta2: float = setting(0.999, "decay of Adam's mean of squared gradients", metavar="BETA")
    adam_epsilon: float = setting(1e-8, "added to Adam's divisor", metavar="EPSILON")
    max_grad_norm: float = setting(
        1.0, "gradients are scaled to this norm if theirs is larger; 0 for no bound", metavar="NORM"
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = setting(
        "linear", "how the learning rate falls after the warm-up"
    )

    def __post_init__(self) -> None:
        check_field_types(self)
        for name, low, high in (
            *(("learning_rate", 0.0, math.inf), ("weight_decay", 0.0, math.inf), ("max_grad_norm", 0.0, math.inf)),
            *(("adam_beta1", 0.0, 1.0), ("adam_beta2", 0.0, 1.0)),
        ):
            if not low <= getattr(self, name) < high:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {low:g} and below {high:g}")


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(AdamWSettings):
    """AdamW (Loshchilov and Hutter, 2019) over a run of known length.

    Attributes:
        warmup_steps: in which the learning rate rises from 0.
        max_steps: of the whole run.
        average: gradients of micro batches are averaged; else summed, as in transformers 4.46 and 4.47.

    Raises:
        TypeError, ValueError: a value out of range, a warm-up longer than the run.
    """

    warmup_steps: int = 0
    max_steps: int = 1
    average: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.warmup_steps <= self.max_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be between 0 and max_steps {self.max_steps}")

    def schedule(self) -> optax.Schedule:
        """The learning rate of each step, counted from 0: `k / warmup` of the highest in the warm-up, whose first
        step has 0, then `(max_steps - k) / (max_steps - warmup)` of it, or half a cosine (transformers' `linear` and
        `cosine`)."""
        steps = max(self.max_steps - self.warmup_steps, 1)
        after = {
            "linear": optax.linear_schedule(self.learning_rate, 0.0, steps),
            "cosine": optax.cosine_decay_schedule(self.learning_rate, steps),
            "constant": optax.constant_schedule(self.learning_rate),
        }[self.lr_scheduler_type]
        if self.warmup_steps == 0:
            return after
        rise = optax.linear_schedule(0.0, self.learning_rate, self.warmup_steps)
        return optax.join_schedules([rise, after], [self.warmup_steps])


def decayed(paths: Iterable[str]) -> dict[str, bool]:
    """Which parameters decay, by their dotted paths: all but biases and the scales of norms."""
    return {path: path.rpartition(".")[2] not in ("bias", "scale") for path in paths}


def make_optimizer(settings: OptimizerSettings, decays: Mapping[str, bool]) -> optax.GradientTransformation:
    """AdamW after clipping.

    Args:
        settings: of the run.
        decays: for each parameter that is trained whether it decays; see `decayed`.
    """
    steps = [clip(settings.max_grad_norm)] if settings.max_grad_norm else []
    return optax.chain(
        *steps,
        scale_by_adam(settings.adam_beta1, settings.adam_beta2, settings.adam_epsilon),
        optax.add_decayed_weights(settings.weight_decay, mask=dict(decays)),
        optax.scale_by_learning_rate(settings.schedule()),
    )


def scale_by_adam(beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, 2015), with its corrections of the first steps as exact as in PyTorch: optax takes `1 -
    beta2**count` in float32, which is 1.3e-5 too little at first. The state is that of `optax.scale_by_adam`."""

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(
        gradient: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        count = state.count + 1
        first, second = (-jnp.expm1(count.astype(jnp.float32) * math.log(beta)) for beta in (beta1, beta2))
        mean = jax.tree.map(lambda m, g: m + (1 - beta1) * (g - m), state.mu, gradient)
        square = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * (g * g), state.nu, gradient)
        scaled = jax.tree.map(lambda m, v: (m / first) / (jnp.sqrt(v) / jnp.sqrt(second) + epsilon), mean, square)
        return scaled, optax.ScaleByAdamState(count, mean, square)

    return optax.GradientTransformation(init, update)


def clip(max_norm: float) -> optax.GradientTransformation:
    """Scale gradients by `max_norm / (norm + 1e-6)` where that is less than 1, as PyTorch's `clip_grad_norm_` does."""

    def scale(updates: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        factor = jnp.minimum(max_norm / (optax.tree.norm(updates) + CLIP_EPSILON), 1.0)
        return jax.tree.map(lambda update: update * factor, updates)

    return optax.stateless(scale)
