"""Files of pairs, cut into shards: what JSON lines and Parquet share."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, NamedTuple

from flax_rerank.jobs import files
from flax_rerank.jobs.rows import Reject, Row, Shard
from flax_rerank.jobs.sources.records import LIMITS, Limits, require_texts, string_in


class OpenFile(NamedTuple):
    """A file that was read up to row `next_row`, from 1."""

    path: str
    next_row: int
    rows: Generator[Any]


@dataclass
class PairSource(ABC):
    """Files of pairs (paths or URLs), one after the other. Cheap to make and to pickle.

    Args:
        files: their paths.
        query_field, passage_field: the fields, or columns, of the texts.
        limits: of lines and texts; what exceeds them is rejected.
    """

    files: Sequence[str]
    query_field: str = "query"
    passage_field: str = "passage"
    limits: Limits = LIMITS
    # By file, those that were read anyway.
    _digests: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    # The file of the last shard stays open for the next one, which would otherwise decompress all rows before it.
    _open_file: dict[str, OpenFile] = field(default_factory=dict, init=False, repr=False, compare=False)

    kind: ClassVar[str]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.files, self.query_field, self.passage_field, self.limits)

    def digests(self) -> list[list[str]]:
        """Each file, and a digest of its content, as JSON has it."""
        return [[file, self._digests.get(file) or files.digest(file)] for file in self.files]

    def shards(self, rows: int) -> list[Shard]:
        """The input in shards of `rows` rows. Raises ValueError or OSError for what is wrong with a whole file."""
        if rows < 1:
            raise ValueError(f"a shard of {rows} rows; it must have at least 1")
        shards: list[Shard] = []
        for file in self.files:
            total, offsets = self._cut(file, rows)
            if total == 0:
                raise ValueError(f"{file} holds no rows")
            for before, offset in zip(range(0, total, rows), offsets, strict=True):
                shards.append(Shard(len(shards), file, before + 1, min(rows, total - before), offset))
        return shards

    def read(self, shard: Shard) -> Iterator[Row | Reject]:
        """The rows of a shard, in order, and in their places those that cannot be scored.

        Raises ValueError if the file has fewer rows than it had.
        """
        for number, raw in enumerate(self._rows(shard), start=shard.first):
            try:
                if isinstance(raw, ValueError):
                    raise raw
                record = self._record(raw)
                if record is None:
                    continue
                query, passage = string_in(record, self.query_field), string_in(record, self.passage_field)
                require_texts(query, passage, self.limits)
            except ValueError as error:
                yield Reject(shard.file, number, str(error))
            else:
                yield Row(number, query, passage, record)

    def _rows(self, shard: Shard) -> Iterator[Any]:
        # Threads share the open file, and `pop` gives it to one of them.
        current = self._open_file.pop("last", None)
        if current is None or current.path != shard.file or current.next_row > shard.first:
            if current is not None:
                current.rows.close()
            current = OpenFile(shard.file, *self._open(shard))
        try:
            for _ in islice(current.rows, shard.first - current.next_row):
                pass
            yield from exactly(shard, current.rows)
        except BaseException:
            current.rows.close()
            raise
        self._open_file["last"] = current._replace(next_row=shard.first + shard.rows)

    @abstractmethod
    def _cut(self, file: str, rows: int) -> tuple[int, Sequence[int]]:
        """How many rows a file has, and the offset at which each shard of `rows` rows starts."""

    @abstractmethod
    def _open(self, shard: Shard) -> tuple[int, Generator[Any]]:
        """Open a shard's file: the number of the first row that comes, at most the shard's, and the rows. An error
        stands for a row that cannot be read."""

    @abstractmethod
    def _record(self, raw: Any) -> dict[str, Any] | None:
        """The fields of a row; None for a blank line. Raises ValueError if it has none."""


def exactly(shard: Shard, rows: Iterator[Any]) -> Iterator[Any]:
    """The next rows, as many as the shard has. Raises ValueError if the file has fewer than it had."""
    taken = 0
    for row in islice(rows, shard.rows):
        yield row
        taken += 1
    if taken < shard.rows:
        raise ValueError(f"{shard.file} has fewer rows than when it was cut into shards: it was changed")
