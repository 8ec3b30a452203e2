"""A TREC run with its texts in a temporary SQLite database, so that memory does not grow with any of them."""

import math
import sqlite3
import weakref
from collections.abc import Iterator
from typing import Any

from flax_rerank.jobs.sources.records import Limits, numbered_lines
from flax_rerank.jobs.sources.texts import read_texts

NAMED = 3
TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -65536;  -- KiB
CREATE TABLE query (number INTEGER PRIMARY KEY, id TEXT UNIQUE, line INTEGER);
CREATE TABLE passage (id TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID;
CREATE TABLE run (query INTEGER, passage TEXT, rank INTEGER, score REAL, line INTEGER);
CREATE TABLE pick (place INTEGER PRIMARY KEY, query INTEGER, passage TEXT, rank INTEGER, score REAL, line INTEGER);
CREATE TABLE query_text (id TEXT, text TEXT, line INTEGER);
CREATE TABLE passage_text (id TEXT, text TEXT, line INTEGER);
"""


class RunTables:
    """The first `top_k` passages of each query of a run, by score, then rank, with all texts; queries in run order.

    The database has no name and is deleted with the object or the process. SQLite chooses its folder (SQLITE_TMPDIR,
    TMPDIR, /var/tmp). Raises ValueError, with file and line, for a malformed line, a passage twice for a query, an id
    without text or with two, and an empty file.
    """

    def __init__(self, run: str, queries: str, corpus: str, top_k: int, limits: Limits) -> None:
        self._limits = limits
        # Threads share the connection; SQLite itself locks it.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._database.close)
        self._database.executescript(TABLES)
        self._database.execute("BEGIN")
        self._read_run(run)
        self._pick(top_k)
        self._read_texts("query", run, queries)
        self._read_texts("passage", run, corpus)
        self._database.execute("COMMIT")

    def counts(self) -> Iterator[int]:
        """How many passages each query has, query by query."""
        for (count,) in self._database.execute("SELECT COUNT(*) FROM pick GROUP BY query ORDER BY query"):
            yield count

    def candidates(self, first: int, count: int) -> Iterator[Any]:
        """Rows `first` (from 1) to `first + count - 1`: line, qid, query, docid, passage, rank and score of each."""
        return self._database.execute(
            "SELECT pick.line, query.id, query_text.text, pick.passage, passage_text.text, pick.rank, pick.score"
            " FROM pick JOIN query ON query.number = pick.query JOIN query_text ON query_text.id = query.id"
            " JOIN passage_text ON passage_text.id = pick.passage"
            " WHERE pick.place BETWEEN ? AND ? ORDER BY pick.place",
            (first, first + count - 1),
        )

    def _read_run(self, run: str) -> None:
        def rows() -> Iterator[tuple[int, str, int, float, int]]:
            last, number = None, 0
            for line_number, line in numbered_lines(run, self._limits):
                try:
                    qid, docid, rank, score = parse_run_line(line)
                except ValueError as error:
                    raise ValueError(f"{run}:{line_number}: {error}") from error
                if qid != last:
                    self._database.execute("INSERT OR IGNORE INTO query (id, line) VALUES (?, ?)", (qid, line_number))
                    (number,) = self._database.execute("SELECT number FROM query WHERE id = ?", (qid,)).fetchone()
                    last = qid
                yield number, docid, rank, score, line_number

        self._database.executemany("INSERT INTO run VALUES (?, ?, ?, ?, ?)", rows())
        twice = self._database.execute(
            "SELECT query.id, passage, MIN(run.line), MAX(run.line) FROM run JOIN query ON query.number = run.query"
            " GROUP BY run.query, passage HAVING COUNT(*) > 1 ORDER BY 3 LIMIT 1"
        ).fetchone()
        if twice:
            raise ValueError(f"{run}:{twice[3]}: query {twice[0]!r} has {twice[1]!r} already, in line {twice[2]}")

    def _pick(self, top_k: int) -> None:
        self._database.execute(
            "INSERT INTO pick (query, passage, rank, score, line)"
            " SELECT query, passage, rank, score, line FROM (SELECT *, ROW_NUMBER() OVER"
            " (PARTITION BY query ORDER BY score DESC, rank, line) AS place FROM run)"
            " WHERE place <= ? ORDER BY query, place",
            (top_k,),
        )
        self._database.execute("DROP TABLE run")
        self._database.execute("INSERT INTO passage SELECT passage, MIN(line) FROM pick GROUP BY 1")

    def _read_texts(self, role: str, run: str, path: str) -> None:
        self._database.executemany(
            f"INSERT INTO {role}_text SELECT ?, ?, ? WHERE EXISTS (SELECT 1 FROM {role} WHERE id = ?)",
            (
                (name, text, line, name)
                for line, name, text in read_texts(path, titles=role == "passage", limits=self._limits)
            ),
        )
        self._database.execute(f"CREATE INDEX {role}_text_id ON {role}_text (id)")
        twice = self._database.execute(
            f"SELECT id, MIN(line), MAX(line) FROM {role}_text GROUP BY id HAVING COUNT(*) > 1 ORDER BY 2 LIMIT 1"
        ).fetchone()
        if twice:
            raise ValueError(f"{path}:{twice[2]}: {twice[0]!r} has a text already, in line {twice[1]}")
        missing = f"FROM {role} WHERE id NOT IN (SELECT id FROM {role}_text)"
        (count,) = self._database.execute(f"SELECT COUNT(*) {missing}").fetchone()
        if count:
            first = self._database.execute(f"SELECT id, line {missing} ORDER BY line LIMIT {NAMED}")
            named = ", ".join(f"{identifier!r} ({run}:{line})" for identifier, line in first)
            more = ", ..." if count > NAMED else ""
            raise ValueError(f"{path} has no text for {count} {role} id{'s' * (count > 1)} of the run: {named}{more}")


def parse_run_line(line: bytes) -> tuple[str, str, int, float]:
    """Query id, document id, rank and score of a line of a run. Raises ValueError for another line."""
    columns = line.decode("utf-8").split()
    if len(columns) != 6:
        raise ValueError(f"the number of columns is {len(columns)}; it must be 6: qid Q0 docid rank score tag")
    qid, _, docid, rank, score, _ = columns
    try:
        number, value = int(rank), float(score)
    except ValueError:
        number, value = 0, math.nan
    if not math.isfinite(value) or abs(number) >= 2**63:
        raise ValueError(f"rank {rank} and score {score}: they must be an integer and a finite number")
    return qid, docid, number, value
