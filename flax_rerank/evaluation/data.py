"""Test sets: queries, passages, judgments and candidates."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Literal

from flax_rerank.evaluation.bm25 import BM25
from flax_rerank.evaluation.nano import is_nano
from flax_rerank.evaluation.sources import Source, from_files, from_ir_datasets, from_nano
from flax_rerank.evaluation.trec import Qrels, Run
from flax_rerank.jobs import files
from flax_rerank.jobs.sources.texts import beir_files

File = str | PathLike[str]
Candidates = Literal["judged", "run", "bm25"]
CANDIDATES: tuple[Candidates, ...] = ("judged", "run", "bm25")
IR_DATASETS = "irds:"
NAMED = 3


@dataclass(frozen=True)
class EvaluationSet:
    """A test set. All is by id: "qid" is a query's, "docid" a passage's.

    Attributes:
        queries: the text of each judged query.
        passages: the text (title and text with a space between) of each candidate.
        qrels: how relevant passages are to a query: 0 is not relevant.
        candidates: the passages to rank for each judged query, those of the first stage in its order.
        first_stage: the first stage's scores of the candidates that it found, if there is a first stage.
        corpus: gives the texts of all passages, by id.
    """

    queries: Mapping[str, str]
    passages: Mapping[str, str]
    qrels: Qrels
    candidates: Mapping[str, Sequence[str]]
    first_stage: Run | None = None
    corpus: Callable[[], Mapping[str, str]] | None = field(default=None, compare=False, repr=False)

    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of query and passage to score, query by query."""
        return [(self.queries[qid], self.passages[docid]) for qid, docid in self.ids()]

    def run_of(self, scores: Sequence[float]) -> dict[str, dict[str, float]]:
        """The run that scores of `pairs` make. Raises ValueError for another number of scores than of pairs."""
        ids = self.ids()
        if len(scores) != len(ids):
            raise ValueError(f"{len(scores)} scores for {len(ids)} pairs")
        run: dict[str, dict[str, float]] = {qid: {} for qid in self.candidates}
        for (qid, docid), score in zip(ids, scores, strict=True):
            run[qid][docid] = float(score)
        return run

    def ids(self) -> list[tuple[str, str]]:
        """The ids of query and passage of each of `pairs`."""
        return [(qid, docid) for qid, docids in self.candidates.items() for docid in docids]


def open_set(
    path: File | None = None,
    *,
    queries: File | None = None,
    corpus: File | None = None,
    qrels: File | None = None,
    run: File | None = None,
    split: str | None = None,
    candidates: Candidates | None = None,
    top_k: int = 100,
    always_rerank_positives: bool | None = None,
) -> EvaluationSet:
    """Read a test set.

    Args:
        path: a BEIR folder: queries.jsonl, corpus.jsonl, qrels/*.tsv, and run.txt if it has one; or a folder of
            NanoBEIR, see `flax_rerank.evaluation.nano`; or a set of ir_datasets, such as "irds:beir/nfcorpus/test".
        queries: .jsonl (BEIR) or .tsv. This file and the next ones take the place of the folder's.
        corpus: as `queries`.
        qrels: TREC's lines of "qid 0 docid relevance", or BEIR's of qid, docid and relevance.
        run: a TREC run.
        split: which of the folder's qrels, by default test or the only one; the set of NanoBEIR.
        candidates: what is ranked: the judged passages, the run's, or those that BM25 finds in the corpus. By default
            the run's, or the judged ones if there is no run.
        top_k: how many candidates a query has at most, if they come from the run or BM25.
        always_rerank_positives: add the relevant passages that the run or BM25 missed; by default for NanoBEIR alone.

    Raises:
        ValueError: a line at fault, as "path:line: reason"; an id without text; options that contradict each other.
        FileNotFoundError: a file that the folder should have.
        ImportError: bm25s or ir_datasets is needed and not installed.
    """
    if candidates not in (None, *CANDIDATES):
        raise ValueError(f"candidates is {candidates!r}; it must be one of {', '.join(CANDIDATES)}")
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1")
    name = "" if path is None else str(path)
    nano = path is not None and not name.startswith(IR_DATASETS) and is_nano(name)
    if nano or name.startswith(IR_DATASETS):
        if any(file is not None for file in (queries, corpus, qrels, run)):
            raise ValueError(f"{name} is complete: queries, corpus, qrels and run do not go with it")
        source = from_nano(name, split, top_k) if nano else from_ir_datasets(name.removeprefix(IR_DATASETS), top_k)
    else:
        if path is not None:
            if queries is None or corpus is None:
                found = beir_files(name)
                queries, corpus = queries or found[0], corpus or found[1]
            qrels = qrels or _qrels_of(name, split)
            if run is None and candidates in (None, "run") and "run.txt" in files.sizes(name):
                run = f"{name}/run.txt"
        if queries is None or corpus is None or qrels is None:
            raise ValueError("a test set needs a BEIR folder, or queries, corpus and qrels")
        if run is not None and candidates not in (None, "run"):
            raise ValueError(f"candidates is {candidates}, and there is the run {run}: give one of them")
        source = from_files(str(queries), str(corpus), str(qrels), None if run is None else str(run), top_k)
    positives = nano if always_rerank_positives is None else always_rerank_positives
    return _assemble(source, candidates, top_k, positives)


def _assemble(source: Source, candidates: Candidates | None, top_k: int, positives: bool) -> EvaluationSet:
    if candidates is None:
        candidates = "judged" if source.run is None else "run"
    judged = source.qrels
    queries = _texts(source, "query", judged, "qrels")
    passages: dict[str, str] | None = None
    first_stage: Run | None = None
    if candidates == "run":
        if source.run is None:
            raise ValueError("candidates is run, and there is no run: give one")
        first_stage = {qid: source.run.get(qid, {}) for qid in judged}
    elif candidates == "bm25":
        passages = source.passages(None)
        index = BM25(passages)
        first_stage = {qid: index.best(index.scores(queries[qid]), top_k) for qid in judged}
    chosen = _candidates(judged, first_stage, positives)
    wanted = {docid for docids in chosen.values() for docid in docids}
    if passages is None:
        passages = _texts(source, "passage", wanted, "run" if candidates == "run" else "qrels")
    return EvaluationSet(queries, passages, judged, chosen, first_stage, lambda: source.passages(None))


def _candidates(judged: Qrels, first_stage: Run | None, positives: bool) -> dict[str, list[str]]:
    """The passages to rank for each query: the judged ones, or those of the first stage; with the positives that it
    missed, if they are wanted."""
    if first_stage is None:
        return {qid: list(docids) for qid, docids in judged.items()}
    chosen = {qid: list(docids) for qid, docids in first_stage.items()}
    if positives:
        for qid, docids in chosen.items():
            relevant = [docid for docid, relevance in judged[qid].items() if relevance > 0]
            docids += [docid for docid in relevant if docid not in first_stage[qid]]
    return chosen


def _texts(source: Source, role: str, wanted: Collection[str], whose: str) -> dict[str, str]:
    """The texts of these ids, which the judgments or the run have. Raises ValueError for one without text."""
    texts = (source.queries if role == "query" else source.passages)(wanted)
    missing = sorted(set(wanted) - set(texts))
    if missing:
        named = ", ".join(map(repr, missing[:NAMED])) + (", ..." if len(missing) > NAMED else "")
        raise ValueError(
            f"{source.names[role]} has no text for {len(missing)} {role} ids of {source.names[whose]}: {named}"
        )
    return texts


def _qrels_of(folder: str, split: str | None) -> str:
    """The file of judgments of a BEIR folder."""
    found = [name.removesuffix(".tsv") for name in files.sizes(f"{folder}/qrels") if name.endswith(".tsv")]
    if split is None and found:
        split = found[0] if len(found) == 1 else "test"
    if split not in found:
        there = f"it has {', '.join(found)}" if found else "there are none"
        raise FileNotFoundError(f"no qrels/{split or 'test'}.tsv in {folder}: {there}")
    return f"{folder}/qrels/{split}.tsv"
