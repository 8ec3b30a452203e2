"""What can be evaluated by name: a reranker, a TREC run, BM25, or the first stage of a test set."""

from typing import Any

from flax_rerank.evaluation.bm25 import BM25
from flax_rerank.evaluation.data import EvaluationSet
from flax_rerank.evaluation.trec import Run, read_run
from flax_rerank.jobs.files import compression_of
from flax_rerank.jobs.formats import RUNS
from flax_rerank.rerankers import AbsReranker, Prepared, RerankOutput

BY_BM25 = "bm25"
FIRST_STAGE = "first-stage"


def is_model(system: str) -> bool:
    """Whether it is the name or the folder of a reranker."""
    return system not in (BY_BM25, FIRST_STAGE) and not system.removesuffix(compression_of(system)).endswith(RUNS)


def run_of(system: str, data: EvaluationSet) -> Run:
    """The scores of a system that is no reranker.

    Args:
        system: "bm25", for the candidates; "first-stage", with the scores that the candidates came with; or the path
            of a TREC run, whose passages are taken as they are.
        data: the test set.

    Raises:
        ValueError: the test set has no first stage or no corpus; or a line of the run is at fault.
    """
    if system == BY_BM25:
        if data.corpus is None:
            raise ValueError("BM25 needs a corpus, and this test set has none")
        index = BM25(data.corpus())
        return {
            qid: index.scores_of(index.scores(data.queries[qid]), docids) for qid, docids in data.candidates.items()
        }
    if system != FIRST_STAGE:
        return read_run(system)
    if data.first_stage is None:
        raise ValueError("there is no first stage, since the candidates are the judged passages")
    return data.first_stage


def prepare(reranker: AbsReranker, data: EvaluationSet, **overrides: Any) -> Prepared:
    """The pairs of a test set, ready to be run.

    Args:
        reranker: the reranker.
        data: the test set.
        overrides: arguments of `AbsReranker.prepare`.

    Raises:
        ValueError: a pair that cannot be scored, by the ids of query and passage; and as `AbsReranker.prepare`.
    """
    prepared = reranker.prepare(data.pairs(), skip_faulty=True, **overrides)
    for index, reason in prepared.faults.items():
        qid, docid = data.ids()[index]
        raise ValueError(f"query {qid!r} and passage {docid!r} cannot be scored: {reason}")
    return prepared


def runs_of(output: RerankOutput, data: EvaluationSet) -> dict[int | None, Run]:
    """The runs that scores make: by cutoff layer, or under None if each pair has one score."""
    by_layer = output.scores if isinstance(output.scores, dict) else {None: output.scores}
    return {layer: data.run_of(values.tolist()) for layer, values in by_layer.items()}
