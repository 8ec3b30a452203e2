"""TREC's files: judgments and runs."""

from collections.abc import Iterator, Mapping

from flax_rerank.jobs import files
from flax_rerank.jobs.sources.records import numbered_lines
from flax_rerank.jobs.sources.run_tables import parse_run_line

# By the ids of query and passage: how relevant the passage is, and its score.
Qrels = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Mapping[str, float]]

BEIR_HEADER = ["query-id", "corpus-id", "score"]


def read_qrels(path: str) -> dict[str, dict[str, int]]:
    """Judgments from lines of "qid 0 docid relevance" (TREC), or of qid, docid and relevance (BEIR, with a header).

    Raises ValueError for a line at fault, as "path:line: reason", also if it contradicts an earlier line.
    """
    qrels: dict[str, dict[str, int]] = {}
    for number, line in numbered_lines(path):
        try:
            columns = line.decode("utf-8").split()
            if not qrels and columns == BEIR_HEADER:
                continue
            if len(columns) not in (3, 4):
                raise ValueError(f"{len(columns)} columns where there should be 4 (qid 0 docid relevance) or 3")
            qid, docid, text = columns[0], columns[-2], columns[-1]
            try:
                relevance = int(text)
            except ValueError as error:
                raise ValueError(f"the relevance {text!r} is not an integer") from error
            known = qrels.setdefault(qid, {}).setdefault(docid, relevance)
            if known != relevance:
                raise ValueError(f"{docid!r} has the relevance {known} for query {qid!r} in an earlier line")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    if not qrels:
        raise ValueError(f"{path} holds no judgments")
    return qrels


def read_run(path: str, top_k: int | None = None) -> dict[str, dict[str, float]]:
    """A run from lines of "qid Q0 docid rank score tag": for each query the first passages by score, then rank.

    Raises ValueError for a line at fault, as "path:line: reason", also if the query has the passage already.
    """
    rows: dict[str, dict[str, tuple[float, int]]] = {}
    for number, line in numbered_lines(path):
        try:
            qid, docid, rank, score = parse_run_line(line)
            if docid in rows.setdefault(qid, {}):
                raise ValueError(f"query {qid!r} has {docid!r} already")
            rows[qid][docid] = (-score, rank)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    return {
        qid: {docid: -found[docid][0] for docid in sorted(found, key=lambda docid: found[docid])[:top_k]}
        for qid, found in rows.items()
    }


def write_run(path: str, run: Run, tag: str) -> None:
    """Write a run as lines of "qid Q0 docid rank score tag", the highest score of each query first."""

    def lines() -> Iterator[bytes]:
        for qid, scores in run.items():
            for rank, docid in enumerate(sorted(scores, key=lambda docid: -scores[docid]), start=1):
                yield f"{qid} Q0 {docid} {rank} {scores[docid]!r} {tag}\n".encode()

    with files.open_output(path) as sink:
        sink.writelines(lines())
