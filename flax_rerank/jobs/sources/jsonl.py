"""JSON lines: one object a line, with a query, a passage and whatever else."""

import hashlib
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from flax_rerank.jobs import files
from flax_rerank.jobs.rows import Reject, Row, Shard
from flax_rerank.jobs.sources.cursors import Cursors, take_all
from flax_rerank.jobs.sources.fingerprint import fingerprint
from flax_rerank.jobs.sources.pair import pair_of

NEWLINE = ord("\n")


@dataclass
class JsonlSource:
    """Files of JSON lines (.gz, .zst or neither; paths or URLs), one after the other.

    Rows are lines, so a blank line counts among the rows of a shard, though nothing comes of it.

    Args:
        files: their paths.
        query_field, passage_field: the fields of the texts.
    """

    files: Sequence[str]
    query_field: str = "query"
    passage_field: str = "passage"
    _digests: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    _cursors: Cursors[bytes] = field(default_factory=Cursors, init=False, repr=False, compare=False)

    def fingerprint(self) -> str:
        """See `Source`. After `shards` it is known for plain local files, which are then not read again."""
        for file in self.files:
            if file not in self._digests:
                self._digests[file] = files.digest(file)
        settings = ["jsonl", self.query_field, self.passage_field]
        return fingerprint(settings, [self._digests[file] for file in self.files])

    def shards(self, rows: int) -> list[Shard]:
        """See `Source`. Each file is read through once."""
        shards: list[Shard] = []
        for file in self.files:
            with files.open_input(file) as stream:
                cut = cut_lines(stream, rows)
            if cut.blank:
                raise ValueError(f"{file} holds no rows")
            seekable = not files.compression_of(file)
            if seekable and not files.is_url(file):
                self._digests[file] = cut.sha256
            for part, offset in enumerate(cut.offsets):
                first = part * rows + 1
                count = min(rows, cut.lines - part * rows)
                shards.append(Shard(len(shards), file, first, count, offset if seekable else 0))
        return shards

    def read(self, shard: Shard) -> Iterator[Row | Reject]:
        """See `Source`."""
        for number, line in enumerate(self._lines(shard), start=shard.first):
            if line.isspace():
                continue
            try:
                record = parse_object(line)
                query, passage = pair_of(record, self.query_field, self.passage_field)
            except ValueError as error:
                yield Reject(shard.file, number, str(error))
            else:
                yield Row(number, query, passage, record)

    def _lines(self, shard: Shard) -> Iterator[bytes]:
        if files.compression_of(shard.file):
            yield from self._cursors.take(shard, lambda: (1, lines_of(shard.file)))
            return
        with files.open_input(shard.file) as stream:
            stream.seek(shard.offset)
            yield from take_all(shard, stream)


class Cut(NamedTuple):
    """Where the lines of a file are.

    Attributes:
        lines: how many.
        offsets: the byte at which the first line of each shard starts.
        blank: whether there is nothing but white space.
        sha256: of the bytes, in hexadecimal.
    """

    lines: int
    offsets: list[int]
    blank: bool
    sha256: str


def cut_lines(stream: BinaryIO, rows: int) -> Cut:
    """Find every `rows`-th line of a stream."""
    if rows < 1:
        raise ValueError(f"a shard of {rows} rows; it must have at least 1")
    digest = hashlib.sha256()
    offsets = [0]
    newlines = position = 0
    blank = True
    last = b"\n"
    while block := stream.read(files.BLOCK):
        digest.update(block)
        blank = blank and block.isspace()
        count = block.count(b"\n")
        skipped = (rows - 1 - newlines) % rows  # newlines before the one that ends a shard
        if skipped < count:
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == NEWLINE)[skipped::rows]
            offsets += (ends + (position + 1)).tolist()
        newlines += count
        position += len(block)
        last = block[-1:]
    if offsets[-1] == position:
        offsets.pop()
    return Cut(newlines + (last != b"\n"), offsets, blank, digest.hexdigest())


def lines_of(file: str) -> Generator[bytes]:
    """The lines of a file, decompressed."""
    with files.open_input(file) as stream:
        yield from stream


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object of one line.

    Raises:
        ValueError: the line is not UTF-8, not JSON, or not an object.
    """
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"not a JSON object but {type(record).__name__}")
    return record
