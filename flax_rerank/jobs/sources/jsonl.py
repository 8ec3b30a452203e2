"""JSON lines: one object a line, with a query, a passage and any other fields."""

import hashlib
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from flax_rerank.jobs import files
from flax_rerank.jobs.rows import Shard
from flax_rerank.jobs.sources.pairs import PairSource, exactly
from flax_rerank.jobs.sources.records import parse_object, read_lines, refuse_utf16


class JsonlSource(PairSource):
    """Files of JSON lines (.gz, .zst or neither). Blank lines count among the rows of a shard and are skipped."""

    kind = "jsonl"

    def _cut(self, file: str, rows: int) -> tuple[int, list[int]]:
        seekable = not files.compression_of(file)
        digest, blank, ended = hashlib.sha256(), True, True
        total, position, offsets = 0, 0, [0]  # where every `rows`th line begins
        with files.open_input(file) as stream:
            # By blocks: a line may be longer than memory.
            while block := stream.read(files.BLOCK):
                if position == 0:
                    refuse_utf16(file, block)
                digest.update(block)
                blank, ended = blank and block.isspace(), block.endswith(b"\n")
                ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
                offsets += (position + 1 + ends[-(total + 1) % rows :: rows]).tolist()
                total += len(ends)
                position += len(block)
        total += not ended
        if seekable and not files.is_url(file):
            self._digests[file] = digest.hexdigest()
        shards = -(-total // rows)
        return (0, []) if blank else (total, offsets[:shards] if seekable else [0] * shards)

    def _rows(self, shard: Shard) -> Iterator[bytes | ValueError]:
        if files.compression_of(shard.file):
            yield from super()._rows(shard)
            return
        with files.open_input(shard.file) as stream:
            stream.seek(shard.offset)
            yield from exactly(shard, read_lines(stream, self.limits.line_bytes))

    def _open(self, shard: Shard) -> tuple[int, Generator[bytes | ValueError]]:
        def lines() -> Generator[bytes | ValueError]:
            with files.open_input(shard.file) as stream:
                yield from read_lines(stream, self.limits.line_bytes)

        return 1, lines()

    def _record(self, raw: bytes) -> dict[str, Any] | None:
        return None if raw.isspace() else parse_object(raw)
