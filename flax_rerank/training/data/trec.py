"""Examples of a TREC run: positives are judged relevant, negatives come from the run."""

import array
import os
import tempfile
import weakref
from collections.abc import Iterable, Mapping

from flax_rerank.jobs import files
from flax_rerank.jobs.sources.records import numbered_lines
from flax_rerank.jobs.sources.run_tables import parse_run_line
from flax_rerank.jobs.sources.texts import read_texts
from flax_rerank.training.data.examples import DataError, Example


def read_qrels(path: str) -> dict[str, dict[str, int]]:
    """Judgments: the grade of each passage that is judged for a query, by their ids.

    Lines of "qid 0 docid grade" (TREC) or "qid docid grade" (BEIR, with a header line); .gz, .zst or neither.

    Raises:
        ValueError: a line of another kind, or a passage that is judged twice.
    """
    qrels: dict[str, dict[str, int]] = {}
    for number, line in numbered_lines(path):
        columns = line.decode("utf-8").split()
        if number == 1 and columns == ["query-id", "corpus-id", "score"]:
            continue
        try:
            if len(columns) not in (3, 4):
                raise ValueError(f"{len(columns)} columns where there should be 3 or 4: qid (0) docid grade")
            qid, docid, grade = columns[0], columns[-2], int(columns[-1])
            if qrels.setdefault(qid, {}).setdefault(docid, grade) != grade:
                raise ValueError(f"{docid!r} has another grade for query {qid!r} already: remove one of them")
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}") from error
    return qrels


def read_run(path: str, top_k: int, queries: Mapping[str, object]) -> dict[str, list[str]]:
    """The first passages of each of the queries, by score and then rank, by their ids.

    Raises:
        ValueError: a line that is not "qid Q0 docid rank score tag".
    """
    found: dict[str, list[tuple[float, int, str]]] = {}
    for number, line in numbered_lines(path):
        try:
            qid, docid, rank, score = parse_run_line(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}") from error
        if qid in queries:
            found.setdefault(qid, []).append((-score, rank, docid))
    return {qid: [docid for *_, docid in sorted(rows)[:top_k]] for qid, rows in found.items()}


class TrecSource:
    """An example for each query that `qrels` name: the passages that are judged, with their grades (negative ones
    count as 0), and the first passages of the run, which count as 0 where they are not judged. Passages are kept on
    disk.

    Args:
        run: lines of "qid Q0 docid rank score tag".
        qrels: see `read_qrels`.
        queries, corpus: texts by id, .jsonl or .tsv.
        top_k: passages of the run for each query.

    Raises:
        ValueError: a line at fault, or a query or passage without text.
    """

    def __init__(self, run: str, qrels: str, queries: str, corpus: str, top_k: int) -> None:
        self._paths = (run, qrels, queries, corpus)
        self._qrels_path = qrels
        self._grades = read_qrels(qrels)
        self._ranked = read_run(run, top_k, self._grades)
        self._ids = list(self._grades)
        self._queries = _Texts(queries, self._grades, titles=False)
        wanted = {docid for docids in (*self._grades.values(), *self._ranked.values()) for docid in docids}
        self._passages = _Texts(corpus, wanted, titles=True)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Example:
        qid = self._ids[index]
        judged = {docid: float(max(grade, 0)) for docid, grade in self._grades[qid].items()}
        passages = [self._passages[docid] for docid in judged]
        # A corpus can have a text twice: one that is a positive under another id is no negative.
        positives = {text for text, label in zip(passages, judged.values(), strict=True) if label}
        ranked = (self._passages[docid] for docid in self._ranked.get(qid, ()) if docid not in judged)
        negatives = [text for text in ranked if text not in positives]
        labels = [*judged.values()] + [0.0] * len(negatives)
        return Example(f"{self._qrels_path}: query {qid}", self._queries[qid], passages + negatives, labels)

    def digests(self) -> dict[str, str]:
        """For each file what tells its contents apart."""
        return {path: files.digest(path) for path in self._paths}


class _Texts:
    """Texts by id, in a temporary file without a name."""

    def __init__(self, path: str, wanted: Iterable[str], *, titles: bool) -> None:
        places = dict.fromkeys(wanted, -1)
        self._places, self._starts = places, array.array("q", [0])
        with tempfile.TemporaryFile() as spool:
            for number, name, text in read_texts(path, titles=titles):
                if name not in places:
                    continue
                if places[name] >= 0:
                    raise DataError(f"{path}:{number}: {name!r} has a text already: remove one of them")
                places[name] = len(self._starts) - 1
                self._starts.append(self._starts[-1] + spool.write(text.encode("utf-8")))
            spool.flush()
            self._descriptor = os.dup(spool.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        missing = [name for name, place in places.items() if place < 0]
        if missing:
            raise DataError(f"{path} has no text for {len(missing)} ids, such as {', '.join(missing[:3])}")

    def __getitem__(self, name: str) -> str:
        place = self._places[name]
        start, end = self._starts[place], self._starts[place + 1]
        return os.pread(self._descriptor, end - start, start).decode("utf-8")
