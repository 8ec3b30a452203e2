"""Measures, against trec_eval's own code (pytrec_eval)."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from flax_rerank.evaluation import EvaluationSet, evaluate, measure

DBPEDIA = json.loads(Path(__file__).with_name("dbpedia.json").read_text(encoding="utf-8"))
TREC = {"nDCG@10": "ndcg_cut_10", "nDCG": "ndcg", "AP": "map", "RR": "recip_rank", "R@5": "recall_5", "P@5": "P_5"}


def test_measures_are_trec_evals_with_ties_that_float32_makes():
    random = np.random.default_rng(0)
    qrels, run = {}, {}
    for query in map("q{}".format, range(40)):
        docids = [f"{name}{number}" for number in range(20) for name in ("d", "é", "𝔡")]
        qrels[query] = {docid: int(random.integers(-1, 3)) for docid in random.permutation(docids)[:40].tolist()}
        # 20 distinct values, each in float64 variants that float32 does not tell apart.
        scores = random.integers(0, 20, len(docids)) / 7 + random.integers(0, 9, len(docids)) * 1e-10
        run[query] = dict(zip(docids, scores.tolist(), strict=True))
    found = measure(run, qrels, list(TREC))
    expected = pytrec_eval.RelevanceEvaluator(qrels, set(TREC.values())).evaluate(run)
    for name, theirs in TREC.items():
        values = {query: expected[query][theirs] for query in qrels}
        assert found.per_query[name] == pytest.approx(values, abs=1e-9)
        assert found.mean[name] == pytest.approx(np.mean([*values.values()]), abs=1e-9)
    reciprocal = {query: value if value >= 0.1 else 0 for query, value in found.per_query["RR"].items()}
    assert measure(run, qrels, ["RR@10"]).per_query["RR@10"] == pytest.approx(reciprocal, abs=1e-9)


def test_measures_of_real_judgments_are_trec_evals():
    names = {**TREC, "R@100": "recall_100", "Rprec": "Rprec", "Bpref": "bpref", "infAP": "infAP"}
    found = measure(DBPEDIA["run"], DBPEDIA["qrels"], list(names))
    for name, theirs in names.items():
        expected = {query: values[theirs] for query, values in DBPEDIA["trec_eval"].items()}
        assert found.per_query[name] == pytest.approx(expected, abs=1e-9)


def test_the_greater_id_of_two_equal_scores_comes_first():
    run = {"q": {"a": 1.0, "b": 1.0 + 1e-9}}  # equal in float32
    assert measure(run, {"q": {"a": 1}}, ["RR"]).mean == {"RR": 0.5}
    assert measure(run, {"q": {"b": 1}}, ["RR"]).mean == {"RR": 1.0}


def test_measures_have_parameters():
    run, qrels = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, {"q": {"a": 1, "b": 2, "c": 2}}
    found = measure(run, qrels, ["P(rel=2)@2", "R(rel=2)@2", "SetF(beta=0.5, rel=2)", "MAP"]).mean
    precision, recall = 2 / 3, 1.0  # of the whole run
    score = 1.5 * precision * recall / (0.5 * precision + recall)  # trec_eval does not square beta
    assert found == pytest.approx({"P(rel=2)@2": 0.5, "R(rel=2)@2": 0.5, "SetF(beta=0.5, rel=2)": score, "MAP": 1.0})


def test_a_judged_query_without_candidates_counts_as_0_and_one_that_is_not_judged_does_not_count():
    found = measure({"a": {"p": 1.0}, "b": {}, "c": {"p": 1.0}}, {"a": {"p": 1}, "b": {"p": 1}, "d": {"p": 1}})
    assert found.per_query["nDCG@10"] == {"a": 1.0, "b": 0.0, "d": 0.0}
    assert found.mean == pytest.approx({"nDCG@10": 1 / 3, "RR@10": 1 / 3})


def test_a_test_set_is_scored_pair_by_pair():
    data = EvaluationSet(
        {"q": "cat", "r": "dog"},
        {"a": "cats", "b": "dogs", "c": "cat"},
        {"q": {"c": 1}, "r": {"b": 2}},
        {"q": ["a", "c"], "r": ["b", "a"]},
    )
    pairs = [("cat", "cats"), ("cat", "cat"), ("dog", "dogs"), ("dog", "cats")]
    assert data.pairs() == pairs
    found = evaluate(lambda given: [pairs.index(pair) * 0.5 for pair in given], data, ["RR@10", "MRR@10"])
    assert found.run == {"q": {"a": 0.0, "c": 0.5}, "r": {"b": 1.0, "a": 1.5}}
    assert found.per_query == {name: {"q": 1.0, "r": 0.5} for name in ("RR@10", "MRR@10")}
    with pytest.raises(ValueError, match="3 scores for 4 pairs"):
        evaluate(lambda given: [1.0] * 3, data)


@pytest.mark.parametrize(
    ("run", "measures", "message"),
    [
        ({"q": {"a": 1.0, "b": math.nan}}, ["RR"], "the score of passage 'b' for query 'q' is nan"),
        ({}, ["NDGC@10"], "NDGC@10 is not a measure that can be computed here: ir-measures has none"),
        ({}, ["nDCG@ten"], "nDCG@ten is not a measure that can be computed here"),
        ({}, ["nDCG@-0.5"], "nDCG@-0.5 is not a measure that can be computed here: invalid param cutoff"),
        ({}, ["nDCG(x=1)"], r"nDCG\(x=1\) is not a measure that can be computed here: unsupported params"),
        ({}, ["nDCG at 10"], "nDCG at 10 is not a measure that can be computed here"),
        ({}, ["alpha_nDCG@10"], "alpha_nDCG@10 is not a measure that can be computed here"),
        ({}, [], "no measures are given"),
    ],
)
def test_what_cannot_be_measured_is_named(run, measures, message):
    with pytest.raises(ValueError, match=message):
        measure(run, {"q": {"a": 1}}, measures)
