"""`flax-rerank evaluate`."""

import json

import pytest
from reference_cases import CASES

from flax_rerank.cli import main
from flax_rerank.evaluation import evaluate, open_set

BERT = str(CASES / "encoder-bert")


def test_a_reranker_is_compared_with_the_first_stage(beir, tmp_path, capsys, reranker):
    files = ["--per-query", str(tmp_path / "queries.jsonl.gz"), "--output", str(tmp_path / "scores.trec")]
    settings = ["--max-length", "64", "--devices", "cpu:0", "--no-progress"]
    assert main(["evaluate", BERT, "--beir", str(beir), "--measures", "RR", "--json", *files, *settings]) == 0
    printed = json.loads(capsys.readouterr().out)
    data = open_set(beir)
    expected = evaluate(reranker("encoder-bert", {"max_length": 64}).compute_score, data, ["RR"])
    assert (printed["queries"], printed["pairs"]) == (2, 3)
    (row,) = printed["measures"]
    assert (row["system"], row["mean"]) == (BERT, expected.mean["RR"])
    assert (row["comparison"]["baseline"], row["comparison"]["mean"]) == ("first-stage", 0.25)
    # The written run is the same ranking.
    assert main(["evaluate", str(tmp_path / "scores.trec"), "--beir", str(beir), "--measures", "RR"]) == 0
    assert f"scores.trec: RR {expected.mean['RR']:.4f} [" in capsys.readouterr().out


def test_each_cutoff_layer_is_evaluated(beir, capsys):
    settings = ["--cutoff-layers", "2", "3", "--devices", "cpu:0", "--no-progress"]
    model = str(CASES / "layerwise-minicpm")
    assert main(["evaluate", model, "--beir", str(beir), "--baseline", "bm25", "--json", *settings]) == 0
    printed = json.loads(capsys.readouterr().out)["measures"]
    assert [(row["system"], row["measure"]) for row in printed] == [
        (f"{model}, layer {layer}", measure) for layer in (2, 3) for measure in ("nDCG@10", "RR@10")
    ]


def test_values_of_each_query_are_written(beir, tmp_path, capsys):
    path = tmp_path / "queries.jsonl"
    arguments = ["--beir", str(beir), "--candidates", "judged", "--per-query", str(path), "--measures", "RR", "AP"]
    assert main(["evaluate", "bm25", *arguments]) == 0
    assert "bm25: AP 1.0000 [1.0000, 1.0000]\n" in capsys.readouterr().out
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"system": "bm25", "qid": qid, "RR": 1.0, "AP": 1.0} for qid in ("q1", "q2")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bm25"], "a test set needs a BEIR folder, or queries, corpus and qrels"),
        (
            ["bm25", "--beir", "BEIR", "--max-length", "9"],
            "max_length is a setting of a reranker, and bm25 is not one",
        ),
        (["bm25", "--beir", "BEIR", "--measures", "nope"], "nope is not a measure"),
        (["first-stage", "--beir", "BEIR", "--candidates", "judged"], "there is no first stage"),
        ([BERT, "--beir", "BEIR", "--cutoff-layers", "2"], "--cutoff-layers is not an option for"),
    ],
)
def test_what_is_at_fault_is_named(beir, capsys, arguments, message):
    assert main(["evaluate", *(str(beir) if argument == "BEIR" else argument for argument in arguments)]) == 1
    assert message in capsys.readouterr().err
