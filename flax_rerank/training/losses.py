"""Losses over groups of passages, and the objective that a step minimises.

Every loss is a pure function of `logits` [G, S] (G groups of S passages to one query), `labels` [G, S] and a `mask`
[G, S], which is False for passages that only fill up the shape. A group without passages counts nowhere. Values and
gradients are those of FlagEmbedding 1.4 (`cross_entropy`, `distillation`) and sentence-transformers 6.2 (the others).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Weighting = Literal["none", "ndcg1", "ndcg2", "lambda_rank", "ndcg2++"]

SMALLEST_DCG = 1e-10
# Between the two parts of "ndcg2++", as in section 4.3 of Wang et al., 2018.
MU = 10.0


def cross_entropy(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax cross-entropy against the labels, divided by their sum in each group: with one positive of label 1,
    minus the log of its probability in the group."""
    labels = jnp.where(mask, labels, 0.0)
    return _soft_cross_entropy(logits, labels / _at_least_one(labels.sum(axis=-1, keepdims=True)), mask)


def in_batch_negatives(
    logits: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    *,
    scale: float = 10.0,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.sigmoid,
) -> jax.Array:
    """`cross_entropy` of `scale * activation(logits)`, for groups that hold the passages of other queries too
    (multiple negatives ranking loss; Henderson et al., 2017, section 4.4)."""
    return cross_entropy(scale * activation(logits), labels, mask)


def distillation(logits: jax.Array, teacher: jax.Array, mask: jax.Array, *, temperature: float = 1.0) -> jax.Array:
    """Cross-entropy against the softmax of a teacher's scores, both at a temperature, times its square (Hinton et
    al., 2015, equation 2). It exceeds the Kullback-Leibler divergence by the teacher's entropy; the gradient is the
    same."""
    probabilities = jax.nn.softmax(_fill(teacher / temperature, mask), axis=-1)
    return temperature**2 * _soft_cross_entropy(logits / temperature, probabilities, mask)


def list_net(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """ListNet (Cao et al., 2007, equation 4, top one): cross-entropy against the softmax of the labels."""
    return distillation(logits, labels, mask)


def margin_mse(logits: jax.Array, teacher: jax.Array, mask: jax.Array) -> jax.Array:
    """Squared error of the first passage's margin over each other one, against the teacher's margin (Hofstätter et
    al., 2020, equation 4)."""
    margins = logits[:, :1] - logits[:, 1:]  # [G, S - 1]
    errors = margins - (teacher[:, :1] - teacher[:, 1:])
    return _mean(jnp.square(errors), mask[:, 1:] & mask[:, :1])


def binary_cross_entropy(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, *, positive_weight: float = 1.0
) -> jax.Array:
    """Sigmoid cross-entropy of every passage by itself. Labels are in [0, 1]; what speaks for a passage weighs
    `positive_weight`, as in PyTorch's BCEWithLogitsLoss."""
    for_it, against = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return _mean(-(positive_weight * labels * for_it + (1.0 - labels) * against), mask)


def lambda_loss(
    logits: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    *,
    weighting: Weighting = "ndcg2++",
    k: int | None = None,
    sigma: float = 1.0,
    natural: bool = False,
) -> jax.Array:
    """LambdaLoss (Wang et al., 2018): the logistic loss of each pair of passages, weighted by what their order counts
    in nDCG; the mean over all pairs whose first passage has the higher label ("ndcg1": over all pairs).

    Args:
        weighting: "ndcg1" (equation 12), "ndcg2" (equation 16), "lambda_rank" (equation 14), "ndcg2++" (`MU` times
            "ndcg2" and "lambda_rank"), or "none": all pairs count the same.
        k: only pairs with one of the first k passages by logit count.
        sigma: factor of the difference of the logits.
        natural: the natural logarithm, not that of base 2.
    """
    order = jnp.argsort(_fill(-logits, mask, jnp.inf), axis=-1)
    rank = jnp.argsort(order, axis=-1)  # [G, S], from 0, by logit
    pairs = mask[:, :, None] & mask[:, None, :]
    if weighting != "ndcg1":
        pairs &= labels[:, :, None] > labels[:, None, :]
    if k is not None:
        pairs &= (rank[:, :, None] < k) | (rank[:, None, :] < k)
    relevance = jnp.where(mask, jnp.maximum(labels, 0.0), 0.0)
    ideal = -jnp.sort(-relevance, axis=-1)[:, :k]
    best = (_gain(ideal) * _discount(jnp.arange(ideal.shape[1]))[None]).sum(axis=-1, keepdims=True)
    gain = _gain(relevance) / jnp.maximum(best, SMALLEST_DCG)  # [G, S]
    weights = _WEIGHTS[weighting](gain, rank)  # [G, S, S]
    losses = -jax.nn.log_sigmoid(sigma * (logits[:, :, None] - logits[:, None, :])) * weights
    return _mean(losses if natural else losses / jnp.log(2.0), pairs)


def rank_net(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """RankNet (Burges et al., 2005): the logistic loss, in bits, of each pair of passages with different labels."""
    return lambda_loss(logits, labels, mask, weighting="none")


LOSSES: Mapping[str, Loss] = {
    "cross_entropy": cross_entropy,
    "in_batch_negatives": in_batch_negatives,
    "distillation": distillation,
    "margin_mse": margin_mse,
    "binary_cross_entropy": binary_cross_entropy,
    "rank_net": rank_net,
    "lambda": lambda_loss,
    "lambda_rank": partial(lambda_loss, weighting="lambda_rank"),
    "list_net": list_net,
}
# Those whose labels are the scores of a teacher.
TAUGHT = frozenset({"distillation", "margin_mse"})
# Those of which each group has a value of its own, whatever other groups are beside it.
MEANS_OVER_GROUPS = frozenset({"cross_entropy", "in_batch_negatives", "distillation", "list_net"})


@dataclass(frozen=True)
class Objective:
    """What a step minimises. The defaults are FlagEmbedding's, where teacher scores are given or not.

    Attributes:
        loss: an entry of `LOSSES`.
        distillation: weight of the distillation from teacher scores, where the batch has them.
        temperature: of that.
        self_distillation: weight of the distillation of the last layer's logits (Li et al., 2024) into those of the
            others, where a model scores several layers and there are no teacher scores.

    Raises:
        ValueError: a loss that does not exist, or a temperature that is not positive.
    """

    loss: str = "cross_entropy"
    distillation: float = 1.0
    temperature: float = 1.0
    self_distillation: float = 1.0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss {self.loss!r} is not one of {', '.join(LOSSES)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be positive")

    def __call__(self, logits: jax.Array, labels: jax.Array, teacher: jax.Array | None, mask: jax.Array) -> jax.Array:
        """The sum of the losses of all layers, which is not divided by their number.

        Args:
            logits: float32 [layers, G, S].
            labels: float32 [G, S].
            teacher: scores of a teacher, float32 [G, S], or None.
            mask: bool [G, S]; False for passages that only fill up the shape.

        Raises:
            ValueError: a loss that needs teacher scores, without any.
        """
        soft = partial(distillation, temperature=self.temperature)
        loss = soft if self.loss == "distillation" else LOSSES[self.loss]
        if self.loss in TAUGHT:
            if teacher is None:
                raise ValueError(f"the loss {self.loss} needs teacher scores")
            return _over_layers(loss, logits, teacher, mask)
        total = _over_layers(loss, logits, labels, mask)
        if teacher is not None:
            return total + self.distillation * _over_layers(soft, logits, teacher, mask)
        last = jax.lax.stop_gradient(logits[-1])
        return total + self.self_distillation * _over_layers(distillation, logits[:-1], last, mask)


def _over_layers(loss: Loss, logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    return jax.vmap(loss, in_axes=(0, None, None))(logits, labels, mask).sum()


def _soft_cross_entropy(logits: jax.Array, probabilities: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over the groups with passages of the cross-entropy against `probabilities`, [G, S]."""
    log_probabilities = jax.nn.log_softmax(_fill(logits, mask), axis=-1)
    losses = -jnp.where(mask, probabilities * log_probabilities, 0.0).sum(axis=-1)  # [G]
    return _mean(losses, mask.any(axis=-1))


def _fill(values: jax.Array, mask: jax.Array, value: float = float(jnp.finfo(jnp.float32).min)) -> jax.Array:
    return jnp.where(mask, values, value)


def _mean(losses: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of those losses that count; 0 if none does."""
    return jnp.where(mask, losses, 0.0).sum() / _at_least_one(mask.sum().astype(jnp.float32))


def _at_least_one(count: jax.Array) -> jax.Array:
    return jnp.where(count == 0, 1.0, count)


def _gain(labels: jax.Array) -> jax.Array:
    return jnp.exp2(labels) - 1.0


def _discount(rank: jax.Array) -> jax.Array:
    """1 / log2(1 + position), of ranks from 0."""
    return 1.0 / jnp.log2(rank.astype(jnp.float32) + 2.0)


def _differences(x: jax.Array) -> jax.Array:
    """[G, S, S] of [G, S]."""
    return jnp.abs(x[:, :, None] - x[:, None, :])


def _ndcg2(gain: jax.Array, rank: jax.Array) -> jax.Array:
    apart = _differences(rank)
    deltas = jnp.abs(_discount(apart - 1) - _discount(apart))
    return jnp.where(apart == 0, 0.0, deltas) * _differences(gain)


def _lambda_rank(gain: jax.Array, rank: jax.Array) -> jax.Array:
    return _differences(_discount(rank)) * _differences(gain)


# The weights of all pairs, [G, S, S] or of a shape that broadcasts to it, from gains and ranks, [G, S].
_WEIGHTS: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "none": lambda gain, rank: jnp.ones((1, 1, 1)),
    "ndcg1": lambda gain, rank: (gain * _discount(rank))[:, :, None],
    "ndcg2": _ndcg2,
    "lambda_rank": _lambda_rank,
    "ndcg2++": lambda gain, rank: MU * _ndcg2(gain, rank) + _lambda_rank(gain, rank),
}
