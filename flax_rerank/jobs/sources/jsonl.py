"""JSON lines: one object a line, with a query, a passage and any other fields."""

import hashlib
from collections.abc import Generator, Iterator
from itertools import islice
from typing import Any

from flax_rerank.jobs import files
from flax_rerank.jobs.rows import Shard
from flax_rerank.jobs.sources.pairs import PairSource, exactly
from flax_rerank.jobs.sources.records import parse_object, refuse_utf16


class JsonlSource(PairSource):
    """Files of JSON lines (.gz, .zst or neither). Blank lines count among the rows of a shard and are skipped."""

    kind = "jsonl"

    def _cut(self, file: str, rows: int) -> tuple[int, list[int]]:
        seekable = not files.compression_of(file)
        digest, blank = hashlib.sha256(), True
        total, position, offsets = 0, 0, []
        with files.open_input(file) as stream:
            while lines := list(islice(stream, rows)):
                text = b"".join(lines)
                if position == 0:
                    refuse_utf16(file, text)
                digest.update(text)
                blank = blank and text.isspace()
                offsets.append(position if seekable else 0)
                total += len(lines)
                position += len(text)
        if seekable and not files.is_url(file):
            self._digests[file] = digest.hexdigest()
        return (0, []) if blank else (total, offsets)

    def _rows(self, shard: Shard) -> Iterator[bytes]:
        if files.compression_of(shard.file):
            yield from super()._rows(shard)
            return
        with files.open_input(shard.file) as stream:
            stream.seek(shard.offset)
            yield from exactly(shard, stream)

    def _open(self, shard: Shard) -> tuple[int, Generator[bytes]]:
        def lines() -> Generator[bytes]:
            with files.open_input(shard.file) as stream:
                yield from stream

        return 1, lines()

    def _record(self, raw: bytes) -> dict[str, Any] | None:
        return None if raw.isspace() else parse_object(raw)
