"""A TREC run to rerank, with the texts of its queries and passages."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from flax_rerank.jobs import files
from flax_rerank.jobs.rows import Reject, Row, Shard
from flax_rerank.jobs.sources.records import LIMITS, Limits, require_texts
from flax_rerank.jobs.sources.run_tables import RunTables


@dataclass
class TrecSource:
    """The first passages of each query of a run (.gz, .zst or neither; paths or URLs).

    Queries keep the order of the run. Within a query, the run's score and then its rank decide. A row's number is its
    line in the run; its record has qid, docid, and the run's rank and score as rank and run_score.

    Each process reads all files once, on first use, into a temporary database; see `RunTables`.
    """

    kind: ClassVar[str] = "trec"

    run: str  # lines of "qid Q0 docid rank score tag"
    queries: str  # .jsonl (BEIR) or .tsv; see `flax_rerank.jobs.sources.texts`
    corpus: str  # as queries
    top_k: int = 100  # passages a query
    limits: Limits = LIMITS

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.run, self.queries, self.corpus, self.top_k, self.limits)

    def digests(self) -> list[list[str]]:
        """Each file, and a digest of its content, as JSON has it."""
        return [[file, files.digest(file)] for file in (self.run, self.queries, self.corpus)]

    def shards(self, rows: int) -> list[Shard]:
        """The input in shards of whole queries: as many as fit into `rows` rows, but at least one.

        `first` is the position among all rows here, from 1, not a line. Raises as `RunTables`.
        """
        if rows < 1:
            raise ValueError(f"a shard of {rows} rows; it must have at least 1")
        shards: list[Shard] = []
        first, held = 1, 0
        for count in self._tables.counts():
            if held and held + count > rows:
                shards.append(Shard(len(shards), self.run, first, held, 0))
                first, held = first + held, 0
            held += count
        return [*shards, Shard(len(shards), self.run, first, held, 0)]

    def read(self, shard: Shard) -> Iterator[Row | Reject]:
        """The rows of a shard, in order, and in their places those that cannot be scored."""
        for line, qid, query, docid, passage, rank, score in self._tables.candidates(shard.first, shard.rows):
            try:
                require_texts(query, passage, self.limits)
            except ValueError as error:
                yield Reject(self.run, line, f"{error} (query {qid}, passage {docid})")
            else:
                yield Row(line, query, passage, {"qid": qid, "docid": docid, "rank": rank, "run_score": score})

    @cached_property
    def _tables(self) -> RunTables:
        return RunTables(self.run, self.queries, self.corpus, self.top_k, self.limits)
