"""Sets of ir_datasets."""

import pytest

from flax_rerank.evaluation import open_set

ir_datasets = pytest.importorskip("ir_datasets")


def test_a_set_is_read_by_its_name(beir, tmp_path):
    passages = "p1\tCats cats purr\np2\tdogs bark at cats\np3\tFish swim\np4\tbirds\n"
    for name, text in {
        "docs.tsv": passages,
        "queries.tsv": "q1\tcats\nq2\tfish\n",
        "qrels.txt": "q1 0 p1 2\nq1 0 p4 0\nq2 0 p3 1\nq2 0 p4 1\n",
    }.items():
        (tmp_path / name).write_text(text)
    files = {"docs_tsv": "docs.tsv", "queries_tsv": "queries.tsv", "qrels_trec": "qrels.txt"}
    local = ir_datasets.create_dataset(**{role: str(tmp_path / name) for role, name in files.items()})
    ir_datasets.registry.register("local", local)
    assert open_set("irds:local") == open_set(beir, candidates="judged")
    assert open_set("irds:local", candidates="bm25") == open_set(beir, candidates="bm25")
    with pytest.raises(ValueError, match="ir_datasets has no set 'nothing'"):
        open_set("irds:nothing")
    with pytest.raises(ValueError, match="irds:local is complete"):
        open_set("irds:local", run=beir / "run.txt")
