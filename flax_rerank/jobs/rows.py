"""What inputs give and outputs take: rows, rejected rows and shards."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


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
        file: its file.
        number: its line or row, from 1.
        reason: why it cannot be scored.
    """

    file: str
    number: int
    reason: str


@dataclass(frozen=True)
class Shard:
    """A part of an input. Every process always cuts the input into the same shards.

    Attributes:
        index: its position among the shards, from 0.
        file: its file.
        first: its first row (line), from 1.
        rows: how many rows (lines) it has.
        offset: where reading starts, for files that can seek: a byte, or a row group.
    """

    index: int
    file: str
    first: int
    rows: int
    offset: int
