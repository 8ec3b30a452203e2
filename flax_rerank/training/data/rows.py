"""Rows by their position: of a file of JSON lines, which stay on disk, or in memory."""

import array
import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from flax_rerank.jobs import files
from flax_rerank.jobs.sources.records import parse_object, refuse_utf16


class MemoryRows:
    """Rows that a caller gives."""

    path = "rows"

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self._rows[index]

    def where(self, index: int) -> str:
        """The place of a row, for errors."""
        return f"row {index}"

    def digest(self) -> str:
        """What tells contents apart."""
        return hashlib.sha256(json.dumps(list(map(dict, self._rows)), sort_keys=True).encode()).hexdigest()


class FileRows:
    """The lines of a file (.gz, .zst or neither) that are not blank; threads may read them at the same time.

    A local file is read in its place. What is compressed or behind a URL is kept, decompressed, in a temporary file
    that has no name.

    Attributes:
        path: the file, for errors.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no lines, or is UTF-16.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        if files.is_url(path) or files.compression_of(path):
            with tempfile.TemporaryFile() as spool:
                with files.open_input(path) as stream:
                    shutil.copyfileobj(stream, spool)
                self._scan(spool)
        else:
            with open(path, "rb") as stream:
                self._scan(stream)

    def _scan(self, stream: BinaryIO) -> None:
        stream.seek(0)
        self._starts, self._sizes, self._numbers = array.array("q"), array.array("q"), array.array("q")
        position = 0
        for number, line in enumerate(stream, start=1):
            if number == 1:
                refuse_utf16(self.path, line)
            if not line.isspace():
                self._starts.append(position)
                self._sizes.append(len(line))
                self._numbers.append(number)
            position += len(line)
        if not self._starts:
            raise ValueError(f"{self.path} holds no rows")
        self._descriptor = os.dup(stream.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """A row. Raises ValueError if it is not a JSON object."""
        return parse_object(os.pread(self._descriptor, self._sizes[index], self._starts[index]))

    def where(self, index: int) -> str:
        """File and line of a row, for errors."""
        return f"{self.path}:{self._numbers[index]}"

    def digest(self) -> str:
        """What tells contents apart."""
        return files.digest(self.path)
