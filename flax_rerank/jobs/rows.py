"""What inputs give and outputs take: rows, shards and the two protocols between them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np


class Row(NamedTuple):
    """One pair of the input.

    Attributes:
        number: its line (of text) or row (of a table) in its file, from 1.
        query, passage: the texts.
        record: its fields in the output.
    """

    number: int
    query: str
    passage: str
    record: Mapping[str, Any]


class Reject(NamedTuple):
    """A row of the input that cannot be scored.

    Attributes:
        file: the file it is in.
        number: its line or row, from 1.
        reason: why it cannot be scored.
    """

    file: str
    number: int
    reason: str


@dataclass(frozen=True)
class Shard:
    """A part of an input. Each process, at any time, cuts the input into the same shards.

    Attributes:
        index: its place among the shards, from 0.
        file: which of the input's files it lies in.
        first: its first row (line), from 1.
        rows: how many rows (lines) it has.
        offset: where the first row starts, for inputs that can seek: a byte, a row group.
    """

    index: int
    file: str
    first: int
    rows: int
    offset: int


class Source(Protocol):
    """An input. Cheap to make and to pickle; the work is in its methods."""

    def fingerprint(self) -> str:
        """A digest of all that a score can depend on. Equal for equal inputs, different otherwise."""
        ...

    def shards(self, rows: int) -> Sequence[Shard]:
        """The input in shards of about `rows` rows. Memory does not grow with the input but by a few words a shard.

        Raises:
            ValueError, OSError: what is wrong with the input as a whole, by file (and line).
        """
        ...

    def read(self, shard: Shard) -> Iterator[Row | Reject]:
        """The rows of a shard, in order, and in their places those that cannot be scored."""
        ...


class Format(Protocol):
    """An output."""

    @property
    def suffix(self) -> str:
        """What file names end in, such as ".jsonl"."""
        ...

    def write(self, path: str, rows: Sequence[Row], scores: Mapping[str, np.ndarray]) -> None:
        """Write one shard's rows with their scores (a float array [rows] for each field) to a new file."""
        ...

    def join(self, parts: Sequence[str], path: str) -> None:
        """Write one file with all rows of the parts, in order. Memory is bounded by one part."""
        ...
