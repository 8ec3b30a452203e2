"""Confidence intervals and the paired test."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from flax_rerank.evaluation import Evaluation, compare, confidence_interval


def evaluation(values):
    return Evaluation({}, {"AP": {f"q{number}": value for number, value in enumerate(values)}}, {})


def test_a_comparison_is_the_paired_t_test():
    ours, theirs = np.random.default_rng(0).random((2, 30))
    ours[3] = theirs[3]
    found = compare(evaluation(ours), evaluation(theirs), "AP")
    expected = ttest_rel(ours, theirs)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.interval == pytest.approx([*expected.confidence_interval(0.95)], rel=1e-9)
    assert found.difference == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert (found.better, found.worse, found.equal) == (sum(ours > theirs), sum(ours < theirs), 1)
    interval = confidence_interval(evaluation(ours).per_query["AP"])
    assert interval == pytest.approx([*ttest_1samp(ours, 0).confidence_interval(0.95)], rel=1e-9)


def test_equal_rankings_are_no_different_and_one_query_says_nothing():
    same = evaluation([0.5, 0.25])
    assert compare(same, same, "AP").p_value == 1.0
    assert compare(same, same, "AP").interval == (0.0, 0.0)
    one = compare(evaluation([1.0]), evaluation([0.5]), "AP")
    assert (one.difference, one.interval, one.p_value) == (0.5, None, None)


def test_rankings_of_other_queries_are_refused():
    with pytest.raises(ValueError, match="only one of them was measured for 'q1'"):
        compare(evaluation([1.0, 0.5]), evaluation([1.0]), "AP")
