"""Lines of a file or of texts, on disk, by their position."""

import array
import codecs
import os
import shutil
import tempfile
import weakref
from typing import BinaryIO

from flax_rerank.jobs import files
from flax_rerank.jobs.sources.records import refuse_utf16


class Lines:
    """The lines of a file that are not blank; threads may read them at the same time.

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
            mark = len(codecs.BOM_UTF8) if number == 1 and line.startswith(codecs.BOM_UTF8) else 0
            if not line[mark:].isspace() and len(line) > mark:
                self._starts.append(position + mark)
                self._sizes.append(len(line) - mark)
                self._numbers.append(number)
            position += len(line)
        if not self._starts:
            raise ValueError(f"{self.path} holds no rows")
        self._descriptor = os.dup(stream.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> bytes:
        return os.pread(self._descriptor, self._sizes[index], self._starts[index])

    def where(self, index: int) -> str:
        """File and line, for errors."""
        return f"{self.path}:{self._numbers[index]}"
