"""Files by path or URL: opened for reading, written so that they appear complete or not at all.

A name with "://" goes to fsspec; all others are local and need nothing but the standard library. What ends in .gz is
gzip, what ends in .zst is Zstandard (pyarrow's).
"""

import gzip
import hashlib
import io
import os
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

COMPRESSIONS = (".gz", ".zst")
PARTIAL = ".partial-"
BLOCK = 1 << 20
# What object stores say of an object's content, whether it was listed or asked for alone.
CONTENT_TAGS = ("ETag", "etag", "md5Hash", "crc32c")


def is_url(path: str) -> bool:
    """Whether fsspec is to open it."""
    return "://" in path


def absolute(path: str) -> str:
    """A path as all processes of this machine find it; a URL without a slash at its end."""
    return path.rstrip("/") if is_url(path) else os.path.abspath(path)


def compression_of(path: str) -> str:
    """The suffix among `COMPRESSIONS` that a path has, or ""."""
    return next((suffix for suffix in COMPRESSIONS if path.endswith(suffix)), "")


def open_raw(path: str) -> BinaryIO:
    """A file's bytes as they are stored. The stream can seek.

    Raises:
        FileNotFoundError, IsADirectoryError: named by path.
        ImportError: a URL without fsspec, or without the package that its file system needs.
    """
    if not is_url(path):
        return open(path, "rb")
    filesystem, name = filesystem_of(path)
    if filesystem.isdir(name):
        raise IsADirectoryError(f"{path} is a directory, not a file")
    try:
        return filesystem.open(name, "rb")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such file: {path}") from error


def open_input(path: str) -> BinaryIO:
    """A file's bytes, decompressed. The stream can seek if the file is not compressed.

    Raises:
        OSError: as `open_raw`; and, while reading, compressed data that is damaged or cut off.
    """
    raw = open_raw(path)
    compression = compression_of(path)
    if not compression:
        return raw
    try:
        stream = gzip.GzipFile(fileobj=raw) if compression == ".gz" else _pyarrow().CompressedInputStream(raw, "zstd")
    except BaseException:
        raw.close()
        raise
    return io.BufferedReader(_Decompressed(path, raw, stream), BLOCK)


@contextmanager
def open_output(path: str, *, raw: bool = False) -> Iterator[BinaryIO]:
    """A stream to a new file. It exists, complete, when the block is left, and not at all after an exception.

    A local file is written under another name beside its place, flushed to the disk and renamed. An object is written
    to a local temporary file and uploaded then: left half-way, a stream to an object store would still make an object.

    Args:
        path: the file; an old one is replaced. Local folders on the way are made.
        raw: the bytes are compressed already.
    """
    compression = "" if raw else compression_of(path)
    if is_url(path):
        filesystem, name = filesystem_of(path)
        with tempfile.TemporaryDirectory(prefix="flax-rerank-") as folder:
            spool = os.path.join(folder, "spool")
            with _writer(spool, compression) as sink:
                yield sink
            filesystem.put_file(spool, name)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a directory, not a file")
    partial = target.with_name(f".{target.name}{PARTIAL}{secrets.token_hex(8)}")
    try:
        with _writer(str(partial), compression) as sink:
            yield sink
        with open(partial, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder_descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder_descriptor)  # else the rename itself may be lost with the machine
    finally:
        os.close(folder_descriptor)


def concatenate(parts: Sequence[str], path: str) -> None:
    """Write one file with the bytes of all parts. Compressed files may be put together as they are.

    Raises:
        ValueError: the parts are not compressed as `path` is.
    """
    for part in parts:
        if compression_of(part) != compression_of(path):
            raise ValueError(f"{part} and {path} are not compressed alike")
    with open_output(path, raw=True) as sink:
        for part in parts:
            with open_raw(part) as source:
                shutil.copyfileobj(source, sink, BLOCK)


def exists(path: str) -> bool:
    """Whether a file or a folder exists."""
    if not is_url(path):
        return os.path.exists(path)
    filesystem, name = filesystem_of(path)
    filesystem.invalidate_cache()
    return filesystem.exists(name)


def size(path: str) -> int:
    """Bytes, as stored."""
    if not is_url(path):
        return os.path.getsize(path)
    filesystem, name = filesystem_of(path)
    return filesystem.size(name)


def sizes(folder: str) -> dict[str, int]:
    """Bytes by name of what is in a folder, sorted, without files that are being written; {} if it does not exist."""
    if is_url(folder):
        filesystem, name = filesystem_of(folder)
        filesystem.invalidate_cache()
        entries = filesystem.ls(name, detail=True) if filesystem.isdir(name) else []
        found = {entry["name"].rstrip("/").rpartition("/")[2]: entry["size"] or 0 for entry in entries}
    else:
        entries = os.scandir(folder) if os.path.isdir(folder) else []
        found = {entry.name: entry.stat().st_size for entry in entries if PARTIAL not in entry.name}
    return {name: found[name] for name in sorted(found) if PARTIAL not in name}


def remove(path: str) -> None:
    """Delete a file. Raises FileNotFoundError if it does not exist."""
    if not is_url(path):
        os.remove(path)
        return
    filesystem, name = filesystem_of(path)
    filesystem.rm_file(name)


def remove_tree(path: str) -> None:
    """Delete a folder with all that is in it, if it is there."""
    if is_url(path):
        filesystem, name = filesystem_of(path)
        filesystem.invalidate_cache()
        if filesystem.exists(name):
            filesystem.rm(name, recursive=True)
    elif os.path.isdir(path):
        shutil.rmtree(path)


def digest(path: str) -> str:
    """What tells contents apart: the SHA-256 of its bytes, or the tag that an object store has for them."""
    if is_url(path):
        filesystem, name = filesystem_of(path)
        info = filesystem.info(name)
        tag = next((f"{tag} {info[tag]}" for tag in CONTENT_TAGS if info.get(tag)), None)
        if tag is not None:
            return f"{tag}, {info['size']} bytes"
    with open_raw(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]


class _Decompressed(io.RawIOBase):
    """A decompressed stream whose errors name the file."""

    def __init__(self, path: str, raw: BinaryIO, stream: Any) -> None:
        self._path, self._raw, self._stream = path, raw, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except (OSError, EOFError, zlib.error) as error:
            raise OSError(f"{self._path} cannot be decompressed: {error}") from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._raw.close()
        super().close()


@contextmanager
def _writer(path: str, compression: str) -> Iterator[Any]:
    with ExitStack() as stack:
        if compression == ".zst":
            yield stack.enter_context(_pyarrow().CompressedOutputStream(path, "zstd"))
            return
        raw = stack.enter_context(open(path, "xb"))
        if compression == ".gz":
            # No name and no time in the header: equal content makes equal files.
            yield stack.enter_context(gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0))
        else:
            yield raw


def filesystem_of(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the name that it has there. Raises ImportError without fsspec."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ImportError(f"{url}: URLs need fsspec; install flax-rerank[files]") from error
    return url_to_fs(url)


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(".zst files need pyarrow; install flax-rerank[files]") from error
    return pyarrow
