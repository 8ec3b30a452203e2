"""Losses against sentence-transformers' values and gradients, and what the objective makes of them."""

import json
from functools import partial

import jax
import numpy as np
import pytest
from reference_cases import CASES

from flax_rerank.training.losses import (
    Objective,
    binary_cross_entropy,
    in_batch_negatives,
    lambda_loss,
    list_net,
    margin_mse,
    rank_net,
)

REFERENCE = json.loads((CASES / "training" / "losses.json").read_text())
SHAPE = 13, 16  # of all cases, with one group at least that has no passage
LISTWISE = {
    "LambdaLoss": lambda_loss,
    "LambdaLoss k=2": partial(lambda_loss, k=2),
    "LambdaLoss sigma=2 natural": partial(lambda_loss, sigma=2.0, natural=True),
    "LambdaLoss NDCGLoss1": partial(lambda_loss, weighting="ndcg1"),
    "LambdaLoss NDCGLoss2": partial(lambda_loss, weighting="ndcg2"),
    "LambdaLoss LambdaRank": partial(lambda_loss, weighting="lambda_rank"),
    "RankNetLoss": rank_net,
    "ListNetLoss": list_net,
}


def check(compiled, logits, labels, expected):
    """Value and gradient of a loss over groups of different sizes, filled up with numbers that must not count."""
    arrays = np.full((2, *SHAPE), 3.0, np.float32)
    mask = np.zeros(SHAPE, bool)
    for row, values in enumerate(zip(logits, labels, strict=True)):
        arrays[:, row, : len(values[0])] = values
        mask[row, : len(values[0])] = True
    value, gradient = compiled(*arrays, mask)
    np.testing.assert_allclose(value, expected["value"], atol=1e-5, rtol=1e-6)
    wanted = np.zeros(SHAPE)
    for row, values in enumerate(expected["gradient"]):
        wanted[row, : len(values)] = values
    np.testing.assert_allclose(gradient, wanted, atol=1e-5)
    np.testing.assert_array_equal(gradient[~mask], 0.0)


def compile_loss(loss):
    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize("name", LISTWISE)
def test_listwise_losses_are_those_of_sentence_transformers(name):
    cases = [case for case in REFERENCE["listwise"] if case["loss"] == name]
    assert len(cases) == 15
    compiled = compile_loss(LISTWISE[name])
    for case in cases:
        groups = [REFERENCE["groups"][group] for group in case["groups"]]
        check(compiled, [group["logits"] for group in groups], [group["labels"] for group in groups], case)


@pytest.mark.parametrize("case", REFERENCE["pointwise"], ids=lambda case: f"{case['labels_are']}-{case['pos_weight']}")
def test_binary_cross_entropy(case):
    loss = partial(binary_cross_entropy, positive_weight=case["pos_weight"] or 1.0)
    check(compile_loss(loss), [case["logits"]], [case["labels"]], {**case, "gradient": [case["gradient"]]})


@pytest.mark.parametrize("case", REFERENCE["margin"], ids=lambda case: case["labels_are"])
def test_margin_mse(case):
    teacher = np.asarray(case["labels"])
    if case["labels_are"] != "scores":  # margins of the first over the others: those of 0 over minus the margin
        teacher = np.concatenate([np.zeros((len(teacher), 1)), -teacher.reshape(len(teacher), -1)], axis=1)
    check(compile_loss(margin_mse), case["logits"], teacher, case)


@pytest.mark.parametrize("case", REFERENCE["in_batch"], ids=lambda case: f"{case['rows']}x{case['columns']}")
def test_in_batch_negatives(case):
    options = {"scale": case["config"]["scale"] or 1.0}
    if case["config"]["activation_fn"] == "NoneType":
        options["activation"] = lambda logits: logits
    check(
        compile_loss(partial(in_batch_negatives, **options)), case["logits"], np.eye(*np.shape(case["logits"])), case
    )


def test_distillation_at_a_temperature_with_a_weight():
    logits, teacher = np.float32([[[1.0, -2.0, 0.5]]]), np.float32([[4.0, 0.0, 2.0]])
    labels, mask = np.float32([[1.0, 0.0, 0.0]]), np.ones((1, 3), bool)

    def softmax(x):
        return np.exp(x) / np.exp(x).sum()

    hard = -np.log(softmax(logits[0, 0])[0])
    soft = -4 * (softmax(teacher[0] / 2) * np.log(softmax(logits[0, 0] / 2))).sum()
    both = Objective(distillation=0.3, temperature=2.0)(logits, labels, teacher, mask)
    np.testing.assert_allclose(both, hard + 0.3 * soft, rtol=1e-6)
    alone = Objective(loss="distillation", temperature=2.0)(logits, labels, teacher, mask)
    np.testing.assert_allclose(alone, soft, rtol=1e-6)


def test_what_an_objective_refuses():
    with pytest.raises(ValueError, match="'hinge' is not one of cross_entropy"):
        Objective(loss="hinge")
    with pytest.raises(ValueError, match="temperature is 0"):
        Objective(temperature=0)
    with pytest.raises(ValueError, match="margin_mse needs teacher scores"):
        Objective(loss="margin_mse")(np.zeros((1, 1, 2)), np.zeros((1, 2)), None, np.ones((1, 2), bool))
