"""NanoBEIR's data and protocol, against sentence-transformers' CrossEncoderRerankingEvaluator."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flax_rerank.evaluation import evaluate, open_set

DOCIDS = [f"d{number}" for number in range(30)]
QIDS = [f"q{number}" for number in range(8)]


@pytest.fixture
def nano(tmp_path):
    """A set of NanoBEIR's, and scores of its pairs."""
    source = random.Random(0)
    qrels = {qid: source.sample(DOCIDS, source.randint(1, 4)) for qid in QIDS}
    bm25 = {qid: source.sample(DOCIDS, 20) for qid in QIDS}
    scores = {(f"query {qid}", docid): source.random() for qid in QIDS for docid in DOCIDS}
    tables = {
        "corpus": {"_id": DOCIDS, "text": DOCIDS},
        "queries": {"_id": QIDS, "text": [f"query {qid}" for qid in QIDS]},
        "qrels": {
            "query-id": [qid for qid, docids in qrels.items() for _ in docids],
            "corpus-id": [docid for docids in qrels.values() for docid in docids],
        },
        "bm25": {"query-id": QIDS, "corpus-ids": [*bm25.values()]},
    }
    for name, columns in tables.items():
        (tmp_path / name).mkdir()
        pq.write_table(pa.table(columns), tmp_path / name / "NanoX-00000-of-00001.parquet")
    return tmp_path, scores


def test_the_measures_are_sentence_transformers(nano):
    folder, scores = nano
    data = open_set(folder, top_k=10)
    found = evaluate(lambda pairs: [scores[pair] for pair in pairs], data, ["AP", "RR@10", "nDCG@10"])
    # Of sentence-transformers 6.2, for these candidates and scores.
    assert found.mean == pytest.approx(
        {"AP": 0.40725246975246976, "RR@10": 0.4625, "nDCG@10": 0.5316798913718626}, abs=1e-9
    )
    assert [
        len(docids) for docids in open_set(folder, top_k=10, always_rerank_positives=False).candidates.values()
    ] == ([10] * 8)


def test_what_is_missing_is_named(nano):
    folder, _ = nano
    with pytest.raises(FileNotFoundError, match=r"has no set 'NanoY': split must be one of NanoX"):
        open_set(folder, split="NanoY")
    with pytest.raises(ValueError, match="is complete: queries, corpus, qrels and run do not go with it"):
        open_set(folder, run="run.txt")
    pq.write_table(pa.table({"_id": ["d1"], "title": ["x"]}), folder / "corpus" / "NanoX-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"NanoX-00000-of-00001.parquet has no column 'text'"):
        open_set(folder)
