"""Files by path or URL: opened for reading, written so that they appear complete or not at all.

fsspec opens names with "://". All other names are local and need only the standard library. Names in .gz are gzip,
names in .zst are Zstandard (pyarrow's).
"""

import errno
import gzip
import hashlib
import io
import os
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

from flax_rerank.checkpoint.folder import sync

COMPRESSIONS = (".gz", ".zst")
PARTIAL = ".partial-"
BLOCK = 1 << 20
# What object stores say of an object's content, whether it was listed or asked for alone.
CONTENT_TAGS = ("ETag", "etag", "md5Hash", "crc32c")
# What file systems without hard links answer.
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK)


def is_url(path: str) -> bool:
    """Whether fsspec opens it."""
    return "://" in path


def absolute(path: str) -> str:
    """A path that is right in any working directory; a URL without a slash at its end."""
    return path.rstrip("/") if is_url(path) else os.path.abspath(path)


def compression_of(path: str) -> str:
    """The suffix among `COMPRESSIONS` that a path has, or ""."""
    return next((suffix for suffix in COMPRESSIONS if path.endswith(suffix)), "")


def open_raw(path: str) -> io.BufferedIOBase:
    """A file's bytes as they are stored, in a stream that can seek.

    Raises OSError that names the path, and ImportError for a URL without fsspec or the package of its file system.
    """
    if not is_url(path):
        return open(path, "rb")
    filesystem, name = _filesystem_of(path)
    if filesystem.isdir(name):
        raise IsADirectoryError(f"{path} is a directory, not a file")
    try:
        return filesystem.open(name, "rb")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such file: {path}") from error


def open_input(path: str) -> io.BufferedIOBase:
    """A file's bytes, decompressed, in a stream that can seek if they were not compressed.

    Raises as `open_raw`; and, while reading, OSError for compressed data that is damaged or cut off.
    """
    compression = compression_of(path)
    if compression == ".zst":
        import_pyarrow(path)  # before there is a file to close
    raw: Any = open_raw(path)
    if compression:
        raw = _Decompressed(path, raw)
    # Files behind URLs have no `readline` with a limit.
    return raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, BLOCK)


@contextmanager
def open_output(path: str, *, raw: bool = False) -> Iterator[BinaryIO]:
    """A stream to a file, which is complete when the block is left, and unchanged after an exception.

    Missing folders are made. With `raw`, the bytes are compressed already.
    """
    filesystem, name = _filesystem_of(path)
    if not is_url(path) and filesystem.isdir(name):
        raise IsADirectoryError(f"{path} is a directory, not a file")
    # Not a stream to an object store: left half-way, it would still make an object.
    folder = tempfile.gettempdir() if is_url(path) else os.path.dirname(name) or "."
    os.makedirs(folder, exist_ok=True)
    partial = f"{folder}/.{os.path.basename(name)}{PARTIAL}{secrets.token_hex(8)}"
    try:
        with _compressing(partial, "" if raw else compression_of(path)) as sink:
            yield sink
        filesystem.put_file(partial, name)
    finally:
        Path(partial).unlink(missing_ok=True)


def create(path: str, data: bytes) -> bool:
    """Write a file unless it exists, and return whether this process wrote it: one of several does.

    On a disk without hard links, processes that start at the same moment can each write it, and the last one stays.
    """
    filesystem, name = _filesystem_of(path)
    filesystem.makedirs(os.path.dirname(name), exist_ok=True)
    try:
        filesystem.pipe_file(name, data, mode="create")
    except FileExistsError:
        return False
    return True


def concatenate(parts: Sequence[str], path: str) -> None:
    """Write one file with the bytes of all parts. Raises ValueError if they are not compressed as `path` is."""
    for part in parts:
        if compression_of(part) != compression_of(path):
            raise ValueError(f"{part} and {path} are compressed in different ways")
    with open_output(path, raw=True) as sink:
        for part in parts:
            with open_raw(part) as source:
                shutil.copyfileobj(source, sink, BLOCK)


def exists(path: str) -> bool:
    """Whether a file or a folder exists."""
    filesystem, name = _filesystem_of(path)
    return filesystem.exists(name)


def size(path: str) -> int:
    """Bytes, as stored."""
    filesystem, name = _filesystem_of(path)
    return filesystem.size(name)


def sizes(folder: str) -> dict[str, int]:
    """Bytes of each file in a folder, by name, sorted, without partial files; {} if the folder does not exist."""
    filesystem, path = _filesystem_of(folder)
    entries = filesystem.ls(path, detail=True) if filesystem.isdir(path) else []
    found = {entry["name"].rstrip("/").rpartition("/")[2]: entry["size"] or 0 for entry in entries}
    return {name: found[name] for name in sorted(found) if PARTIAL not in name}


def remove(path: str) -> None:
    """Delete a file, or a folder with all that is in it, if it exists."""
    filesystem, name = _filesystem_of(path)
    if filesystem.exists(name):
        filesystem.rm(name, recursive=True)


def digest(path: str) -> str:
    """What tells contents apart: the SHA-256 of the bytes, or the tag that an object store has for them."""
    filesystem, name = _filesystem_of(path)
    info = filesystem.info(name)
    for tag in CONTENT_TAGS:
        if info.get(tag):
            return f"{tag} {info[tag]}, {info['size']} bytes"
    with open_raw(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Decompressed(io.RawIOBase):
    """A decompressed stream whose errors name the file."""

    def __init__(self, path: str, raw: io.BufferedIOBase) -> None:
        self._path, self._raw = path, raw
        gz = path.endswith(".gz")
        self._stream: Any = (
            gzip.GzipFile(fileobj=raw) if gz else import_pyarrow(path).CompressedInputStream(raw, "zstd")
        )

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
def _compressing(path: str, compression: str) -> Iterator[Any]:
    if compression == ".zst":
        with import_pyarrow(path).CompressedOutputStream(path, "zstd") as sink:
            yield sink
        return
    with open(path, "xb") as raw:
        if compression == ".gz":
            # No name and no time in the header: equal content makes equal files.
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as sink:
                yield sink
        else:
            yield raw


def _list(folder: str, detail: bool) -> list[dict[str, Any]]:
    # Another process can remove its partial file at any moment, so their sizes are not looked up.
    found = [entry for entry in os.scandir(folder) if PARTIAL not in entry.name]
    return [{"name": entry.name, "size": entry.stat().st_size} for entry in found]


def _remove(path: str, recursive: bool) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    else:
        os.remove(path)


def _move(partial: str, path: str) -> None:
    """Put a file in its place so that it survives a loss of power."""
    sync(partial)
    os.replace(partial, path)
    sync(os.path.dirname(path) or ".")


def _create(path: str, data: bytes, mode: str) -> None:
    partial = f"{path}{PARTIAL}{secrets.token_hex(8)}"
    with open_output(partial) as sink:
        sink.write(data)
    try:
        os.link(partial, path)  # complete at once, and it fails if the file exists
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if os.path.exists(path):
            raise FileExistsError(path) from error
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


# The local disk, by the methods of an fsspec file system that are called here: fsspec is optional.
_LOCAL_DISK = SimpleNamespace(
    **{"exists": os.path.exists, "isdir": os.path.isdir, "size": os.path.getsize, "makedirs": os.makedirs},
    **{"info": lambda path: {}, "ls": _list, "rm": _remove, "put_file": _move, "pipe_file": _create},
)


def _filesystem_of(path: str) -> tuple[Any, str]:
    """The file system of a path or URL, and its name there. Raises ImportError for a URL without fsspec."""
    if not is_url(path):
        return _LOCAL_DISK, path
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ImportError(f"{path}: URLs need fsspec; install flax-rerank[files]") from error
    filesystem, name = url_to_fs(path)
    filesystem.invalidate_cache()  # other processes write too
    return filesystem, name


def import_pyarrow(path: str) -> Any:
    """pyarrow, with which the file is read or written. Raises ImportError that names the extra."""
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(f"{path}: .zst and .parquet files need pyarrow; install flax-rerank[files]") from error
    return pyarrow
