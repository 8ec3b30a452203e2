"""Examples by their position: of files of JSON lines, of rows in memory, of a TREC run."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from flax_rerank.jobs import files
from flax_rerank.jobs.sources.records import parse_object
from flax_rerank.training.data.examples import DataError, Example, form_of, merge
from flax_rerank.training.data.lines import Lines

ROWS = "rows"


class Source(Protocol):
    """Examples by their position. Threads may read at the same time."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...
    def digests(self) -> dict[str, str]:
        """For each file what tells its contents apart."""
        ...


class MemoryRows:
    """Rows that a caller gives, by their position."""

    path = ROWS

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, index: int) -> Mapping[str, Any]:
        """The row."""
        return self._rows[index]

    def where(self, index: int) -> str:
        """Its place, for errors."""
        return f"row {index}"

    def digest(self) -> str:
        """What tells contents apart."""
        return hashlib.sha256(json.dumps(list(map(dict, self._rows)), sort_keys=True).encode()).hexdigest()


class FileRows(Lines):
    """Rows of a file of JSON lines (.gz, .zst or neither), by their position."""

    def record(self, index: int) -> Mapping[str, Any]:
        """The row. Raises ValueError if it is not a JSON object."""
        return parse_object(self[index])

    def digest(self) -> str:
        """What tells contents apart."""
        return files.digest(self.path)


class RowSource:
    """The examples of a table of rows, all of the form that the first one has.

    Args:
        rows: the table.

    Raises:
        DataError: the first row is of no known form.
    """

    def __init__(self, rows: MemoryRows | FileRows) -> None:
        self._rows = rows
        if not len(rows):
            raise DataError(f"{rows.path}: there are no rows")
        with _named(rows, 0):
            self._form = form_of(rows.record(0))
        self._groups: list[list[int]] | None = None
        if self._form.grouped:
            queries: dict[str, list[int]] = {}
            for index in range(len(rows)):
                queries.setdefault(self._read(index).query, []).append(index)
            self._groups = list(queries.values())

    def __len__(self) -> int:
        return len(self._rows if self._groups is None else self._groups)

    def __getitem__(self, index: int) -> Example:
        if self._groups is None:
            return self._read(index)
        return merge([self._read(row) for row in self._groups[index]])

    def digests(self) -> dict[str, str]:
        """For each file what tells its contents apart."""
        return {self._rows.path: self._rows.digest()}

    def _read(self, index: int) -> Example:
        with _named(self._rows, index):
            return self._form.read(self._rows.record(index), self._rows.where(index))


@contextmanager
def _named(rows: MemoryRows | FileRows, index: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise DataError(f"{rows.where(index)}: {error}") from error
