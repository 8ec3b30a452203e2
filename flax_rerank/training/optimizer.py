"""AdamW as FlagEmbedding's trainer runs it: decay by parameter, clipping, schedule."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import optax

CLIP_EPSILON = 1e-6


@dataclass(frozen=True)
class OptimizerSettings:
    """How parameters are updated. Names and defaults are those of transformers' TrainingArguments.

    Attributes:
        learning_rate: the highest of the schedule.
        weight_decay: of `decayed` parameters.
        adam_beta1, adam_beta2, adam_epsilon: of AdamW (Loshchilov and Hutter, 2019).
        max_grad_norm: gradients are scaled to this norm if theirs is larger; 0 for no bound.
        lr_scheduler_type: how the learning rate falls to 0 after the warm-up.
        warmup_steps: in which it rises from 0.
        max_steps: of the whole run.
        average: gradients of micro batches are averaged; else summed, as in transformers 4.46 and 4.47.

    Raises:
        ValueError: a schedule that does not exist, a warm-up longer than the run.
    """

    learning_rate: float = 5e-5
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = 0
    max_steps: int = 1
    average: bool = True

    def __post_init__(self) -> None:
        if self.lr_scheduler_type not in ("linear", "cosine", "constant"):
            raise ValueError(f"lr_scheduler_type {self.lr_scheduler_type!r} is not linear, cosine or constant")
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
