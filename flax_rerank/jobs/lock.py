"""A lock on an output file, so that one process at a time writes it."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from flax_rerank.jobs import files


@contextmanager
def locked(file: str) -> Iterator[None]:
    """Hold `<file>.lock` while the block runs; the system releases it if the process dies. URLs are not locked.

    Raises BlockingIOError, with process and host, if another process holds it.
    """
    if files.is_url(file):
        yield
        return
    path = f"{file}.lock"
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 1000).decode() or "another process"
            raise BlockingIOError(f"{file} is being written by {holder}") from error
        if not os.path.exists(path) or not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            raise BlockingIOError(f"another process has just written {file}; start again")
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            os.unlink(path)
    finally:
        os.close(descriptor)
