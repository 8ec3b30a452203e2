"""Test sets: folders and files, candidates, and what is wrong with them."""

import pytest

from flax_rerank.evaluation import open_set


def test_candidates_are_those_of_the_run_of_the_folder(beir):
    data = open_set(beir, top_k=2)
    assert data.queries == {"q1": "cats", "q2": "fish"}
    assert data.qrels == {"q1": {"p1": 2, "p4": 0}, "q2": {"p3": 1, "p4": 1}}
    assert data.candidates == {"q1": ["p2", "p1"], "q2": []}
    assert data.first_stage == {"q1": {"p2": 3.5, "p1": 1.5}, "q2": {}}
    assert data.pairs() == [("cats", "dogs bark at cats"), ("cats", "Cats cats purr")]


def test_relevant_passages_that_the_run_missed_are_added_on_request(beir):
    data = open_set(beir, top_k=1, always_rerank_positives=True)
    assert data.candidates == {"q1": ["p2", "p1"], "q2": ["p3", "p4"]}
    assert data.first_stage == {"q1": {"p2": 3.5}, "q2": {}}
    assert data.passages["p4"] == "birds"


def test_judged_passages_are_the_candidates_where_no_run_is_there(beir):
    (beir / "run.txt").unlink()
    data = open_set(beir)
    assert (data.candidates, data.first_stage) == ({"q1": ["p1", "p4"], "q2": ["p3", "p4"]}, None)


def test_bm25_finds_candidates(beir):
    data = open_set(beir, candidates="bm25", top_k=10)
    assert data.candidates == {"q1": ["p1", "p2"], "q2": ["p3"]}
    assert data.first_stage["q1"]["p1"] > data.first_stage["q1"]["p2"] > 0


def test_files_one_by_one_are_the_folder(beir):
    (beir / "qrels.txt").write_text("q1 0 p1 2\nq1 0 p4 0\nq2 0 p3 1\nq2 0 p4 1\n")
    names = {"queries": "queries.jsonl", "corpus": "corpus.jsonl", "qrels": "qrels.txt", "run": "run.txt"}
    assert open_set(**{role: beir / name for role, name in names.items()}) == open_set(beir)


def test_the_split_is_test_or_the_only_one(beir):
    (beir / "qrels" / "dev.tsv").write_text("q3\tp1\t1\n")
    assert [*open_set(beir).qrels] == ["q1", "q2"]
    assert [*open_set(beir, split="dev").qrels] == ["q3"]
    (beir / "qrels" / "test.tsv").unlink()
    assert [*open_set(beir).qrels] == ["q3"]
    with pytest.raises(FileNotFoundError, match=r"no qrels/test.tsv in .*: it has dev"):
        open_set(beir, split="test")


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("qrels/test.tsv", "q1\tp1\t1\n", r"test.tsv:6: 'p1' has the relevance 2 for query 'q1' in an earlier line"),
        ("qrels/test.tsv", "q1\tp1\tyes\n", r"test.tsv:6: the relevance 'yes' is not an integer"),
        ("qrels/test.tsv", "q1 p1\n", r"test.tsv:6: 2 columns where there should be 4"),
        ("qrels/test.tsv", "q7 0 p1 1\n", r"queries.jsonl has no text for 1 query ids of .*test.tsv: 'q7'"),
        ("corpus.jsonl", '{"_id": "p1", "text": "x"}\n', r"corpus.jsonl:5: 'p1' has a text already"),
        ("run.txt", "q1 Q0 p1 4 0.1 bm25\n", r"run.txt:4: query 'q1' has 'p1' already"),
        ("run.txt", "q1 Q0 p1 4 nan bm25\n", r"run.txt:4: rank 4 and score nan"),
        ("run.txt", "q1 Q0 p8 4 9.0 bm25\n", r"corpus.jsonl has no text for 1 passage ids of .*run.txt: 'p8'"),
    ],
)
def test_a_line_at_fault_is_named(beir, file, line, message):
    with open(beir / file, "a") as stream:
        stream.write(line)
    with pytest.raises(ValueError, match=message):
        open_set(beir)
