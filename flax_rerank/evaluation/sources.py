"""Where test sets come from: files of BEIR and TREC, NanoBEIR's folders, ir_datasets."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from flax_rerank.evaluation.nano import read_nano
from flax_rerank.evaluation.texts import texts_by_id
from flax_rerank.evaluation.trec import Qrels, Run, read_qrels, read_run

# From ids, their texts by id, without those that have none; all texts for None.
Texts = Callable[[Collection[str] | None], dict[str, str]]


@dataclass(frozen=True)
class Source:
    """What a test set is made of.

    Attributes:
        qrels: the judgments.
        queries: their texts.
        passages: their texts.
        run: the passages of a first stage, best first; None without one.
        names: where "query" and "passage" texts, "qrels" and "run" come from, for messages.
    """

    qrels: Qrels
    queries: Texts
    passages: Texts
    run: Run | None
    names: Mapping[str, str]


def from_files(queries: str, corpus: str, qrels: str, run: str | None, top_k: int) -> Source:
    """A test set from its files. Raises ValueError for a line at fault, as "path:line: reason"."""
    return Source(
        read_qrels(qrels),
        lambda wanted: texts_by_id(queries, titles=False, wanted=wanted),
        lambda wanted: texts_by_id(corpus, titles=True, wanted=wanted),
        None if run is None else read_run(run, top_k),
        {"query": queries, "passage": corpus, "qrels": qrels, "run": str(run)},
    )


def from_nano(folder: str, split: str | None, top_k: int) -> Source:
    """A set of NanoBEIR's. Raises as `read_nano`."""
    queries, passages, qrels, run = read_nano(folder, split, top_k)
    names = {"query": f"{folder}/queries", "passage": f"{folder}/corpus", "qrels": f"{folder}/qrels"}
    return Source(qrels, _among(queries), _among(passages), run, names | {"run": f"{folder}/bm25"})


def from_ir_datasets(name: str, top_k: int) -> Source:
    """A set that ir_datasets knows, with the ranking that it has, if it has one.

    Raises:
        ImportError: ir_datasets is not installed.
        ValueError: an unknown set, or one without queries, passages or judgments.
    """
    try:
        import ir_datasets
    except ImportError as error:
        raise ImportError(f"{name} needs ir_datasets: pip install ir-datasets") from error
    try:
        dataset = ir_datasets.load(name)
    except KeyError as error:
        raise ValueError(f"ir_datasets has no set {name!r}") from error
    for role, there in {
        "queries": dataset.has_queries(),
        "passages": dataset.has_docs(),
        "judgments": dataset.has_qrels(),
    }.items():
        if not there:
            raise ValueError(f"the set {name!r} of ir_datasets has no {role}")
    qrels: dict[str, dict[str, int]] = {}
    for judgment in dataset.qrels_iter():
        qrels.setdefault(judgment.query_id, {})[judgment.doc_id] = judgment.relevance

    def passages(wanted: Collection[str] | None) -> dict[str, str]:
        found: Any = dataset.docs_iter() if wanted is None else dataset.docs_store().get_many(wanted).values()
        return {passage.doc_id: passage.default_text() for passage in found}

    queries = _among({query.query_id: query.default_text() for query in dataset.queries_iter()})
    return Source(
        qrels, queries, passages, _scored(dataset, top_k), dict.fromkeys(("query", "passage", "qrels", "run"), name)
    )


def _scored(dataset: Any, top_k: int) -> Run | None:
    """The ranking that a set of ir_datasets has."""
    if not dataset.has_scoreddocs():
        return None
    scores: dict[str, dict[str, float]] = {}
    for scored in dataset.scoreddocs_iter():
        scores.setdefault(scored.query_id, {})[scored.doc_id] = scored.score
    return {
        qid: {docid: found[docid] for docid in sorted(found, key=lambda docid: -found[docid])[:top_k]}
        for qid, found in scores.items()
    }


def _among(texts: Mapping[str, str]) -> Texts:
    return lambda wanted: dict(texts) if wanted is None else {name: texts[name] for name in wanted if name in texts}
