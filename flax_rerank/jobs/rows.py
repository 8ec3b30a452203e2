"""What inputs give and outputs take: rows, rejected rows and shards."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One pair of the input."""

    number: int  # its line (of text) or row (of a table) in its file, from 1
    query: str
    passage: str
    record: Mapping[str, Any]  # its fields in the output


class Reject(NamedTuple):
    """A row of the input that cannot be scored."""

    file: str
    number: int  # its line or row, from 1
    reason: str


@dataclass(frozen=True)
class Shard:
    """A part of an input. Every process always cuts the input into the same shards."""

    index: int  # its position among the shards, from 0
    file: str
    first: int  # its first row (line), from 1
    rows: int  # how many rows (lines) it has
    offset: int  # where reading starts, for files that can seek: a byte, or a row group
