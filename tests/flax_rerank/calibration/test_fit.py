"""Calibrations: the fit, the curve, and the error of probabilities."""

import numpy as np
import pytest

from flax_rerank.calibration import Calibration, cross_fit, fit, reliability

RANDOM = np.random.default_rng(0)
SCORES = RANDOM.normal(-4, 3, 4000)
CHANCES = 1 / (1 + np.exp(-(0.7 * SCORES + 1.5)))
RELEVANT = RANDOM.random(4000) < CHANCES


def test_platt_finds_the_line_that_made_the_labels():
    found = fit(SCORES, RELEVANT)
    assert (found.slope, found.intercept) == pytest.approx((0.7, 1.5), abs=0.1)
    # At the minimum the gradient is 0: as many relevant pairs are expected as Platt's targets have.
    positive, negative = RELEVANT.sum(), (~RELEVANT).sum()
    targets = np.where(RELEVANT, (positive + 1) / (positive + 2), 1 / (negative + 2))
    slack = found(SCORES) - targets
    assert [slack.mean(), (slack * SCORES).mean()] == pytest.approx([0, 0], abs=1e-4)


def test_isotonic_is_the_nearest_rising_curve():
    scores = np.array([1.0, 2.0, 3.0, 3.0, 4.0, 5.0, 6.0])
    relevant = np.array([0, 1, 0, 0, 1, 1, 1], bool)
    found = fit(scores, relevant, "isotonic")
    # 2 and the two 3s are in the wrong order, so they share a level; between points it is a line.
    assert (found.scores, found.probabilities) == (
        (1, 2, 3, 4, 6),
        (0, pytest.approx(1 / 3), pytest.approx(1 / 3), 1, 1),
    )
    given = np.array([-9, 1.5, 2.5, 3.5, 9, np.nan])
    assert found(given) == pytest.approx([0, 1 / 6, 1 / 3, 2 / 3, 1, np.nan], nan_ok=True)


def test_the_expected_calibration_error_is_the_distance_weighted_by_pairs():
    probabilities, relevant = np.array([0.1, 0.15, 0.9, 1.0, 0.95]), np.array([0, 1, 1, 1, 0], bool)
    found = reliability(probabilities, relevant)
    assert found.pairs == (2, 3)
    assert found.relevant == pytest.approx((0.5, 2 / 3))
    assert found.error == pytest.approx((2 * (0.5 - 0.125) + 3 * (0.95 - 2 / 3)) / 5)


def test_probabilities_of_a_query_come_from_the_others():
    queries = [f"q{place % 7}" for place in range(len(SCORES))]
    found = cross_fit(SCORES, RELEVANT, queries)
    first = np.array([query in ("q0", "q5") for query in queries])  # these share a part
    assert found[first].tolist() == fit(SCORES[~first], RELEVANT[~first])(SCORES[first]).tolist()
    assert reliability(found, RELEVANT).error < 0.03


@pytest.mark.parametrize(
    ("scores", "relevant", "method", "message"),
    [
        ([1.0, 2.0], [True, True], "platt", "2 of the pairs are relevant and 0 are not"),
        ([1.0, 2.0], [True, False], "platt", "would reverse the ranking"),
        ([1.0, 2.0], [True, False], "isotonic", "would reverse the ranking"),
        ([1.0, 2.0], [False, True], "beta", "method is 'beta'; it must be one of platt, isotonic"),
    ],
)
def test_what_cannot_be_fitted_is_named(scores, relevant, method, message):
    with pytest.raises(ValueError, match=message):
        fit(np.array(scores), np.array(relevant), method)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "platt", "slope": -1.0}, "slope is -1.0; it must be above 0"),
        ({"method": "platt", "intercept": float("nan")}, "intercept is nan; it must be float"),
        ({"method": "isotonic", "scores": [1, 2], "probabilities": [0.5]}, "as many of each"),
        ({"method": "isotonic", "scores": [2, 2], "probabilities": [0, 1]}, "scores must ascend"),
        (
            {"method": "isotonic", "scores": [1, 2], "probabilities": [0, 1.5]},
            "must ascend, from 0 to 1",
        ),
    ],
)
def test_a_curve_that_does_not_rise_is_refused(fields, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Calibration(**fields)
