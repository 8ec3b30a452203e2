"""Examples by their position."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from flax_rerank.training.data.examples import DataError, Example, form_of, merge
from flax_rerank.training.data.rows import FileRows, MemoryRows


class Source(Protocol):
    """Examples by their position. Threads may read at the same time."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...
    def digests(self) -> dict[str, str]:
        """For each file what tells its contents apart."""
        ...


class RowSource:
    """The examples of a table of rows, all of the form that the first one has.

    Args:
        rows: the table.

    Raises:
        DataError: the first row is of no known form.
    """

    def __init__(self, rows: MemoryRows | FileRows) -> None:
        self._rows = rows
        with _named(rows, 0):
            self._form = form_of(rows[0])
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
            return self._form.read(self._rows[index], self._rows.where(index))


@contextmanager
def _named(rows: MemoryRows | FileRows, index: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise DataError(f"{rows.where(index)}: {error}") from error
