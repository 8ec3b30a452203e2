"""A small test set in BEIR's layout."""

import json

import pytest

QUERIES = {"q1": "cats", "q2": "fish", "q3": "not judged"}
PASSAGES = {"p1": ("Cats", "cats purr"), "p2": ("", "dogs bark at cats"), "p3": ("Fish", "swim"), "p4": ("", "birds")}


@pytest.fixture
def beir(tmp_path):
    """Two judged queries and four passages, with a run that has candidates of the first query."""
    lines = [{"_id": qid, "text": text} for qid, text in QUERIES.items()]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"_id": docid, "title": title, "text": text} for docid, (title, text) in PASSAGES.items()]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\tp1\t2\nq1\tp4\t0\nq2\tp3\t1\nq2\tp4\t1\n"
    )
    (tmp_path / "run.txt").write_text("q1 Q0 p2 1 3.5 bm25\nq1 Q0 p1 2 1.5 bm25\nq1 Q0 p4 3 0.5 bm25\n")
    return tmp_path
