"""MTEB's evaluation of a reranking task."""

import pytest

pytest.importorskip("mteb", reason="needs mteb")

import mteb
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from flax_rerank.evaluation import measure
from flax_rerank.integrations.mteb import MTEBCrossEncoder

QUERIES = {"q1": "what is panda?", "q2": "cats"}
QRELS = {"q1": {"d1": 1, "d3": 1}, "q2": {"d3": 1}}
CANDIDATES = {"q1": ["d2", "d0", "d1", "d3"], "q2": ["d3", "d1", "d2"]}


class LocalReranking(AbsTaskRetrieval):
    """A task whose data is made here."""

    metadata = TaskMetadata(
        name="LocalReranking",
        description="Passages of these tests.",
        reference=None,
        dataset={"path": "local/reranking", "revision": "1"},
        type="Reranking",
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation=None,
    )

    def __init__(self, passages):
        super().__init__()
        self._passages = passages

    def load_data(self, num_proc=None, **kwargs):
        corpus = [{"id": f"d{place}", "title": "", "text": text} for place, text in enumerate(self._passages)]
        queries = [{"id": qid, "text": text} for qid, text in QUERIES.items()]
        split = {
            "corpus": Dataset.from_list(corpus),
            "queries": Dataset.from_list(queries),
            "relevant_docs": QRELS,
            "top_ranked": CANDIDATES,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # those of datasets and torch
def test_an_unmodified_evaluation_gives_the_measures_that_the_scores_have(search):
    model = MTEBCrossEncoder(search.model)
    assert model.mteb_model_meta.name == "flax-rerank/encoder-bert"
    (result,) = mteb.evaluate(model, LocalReranking(search.passages), cache=None, show_progress_bar=False).task_results
    run = {
        qid: {
            docid: search.model.compute_score((QUERIES[qid], search.passages[int(docid[1:])]))[0] for docid in docids
        }
        for qid, docids in CANDIDATES.items()
    }
    expected = measure(run, QRELS, ["nDCG@10", "AP@10", "RR@10"]).mean
    (scores,) = result.scores["test"]
    found = [scores["ndcg_at_10"], scores["map_at_10"], scores["mrr_at_10"]]
    assert found == pytest.approx([*expected.values()], abs=1e-5)  # MTEB rounds
    assert min(found) < 1
