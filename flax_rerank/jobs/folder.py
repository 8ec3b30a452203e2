"""The folder of a job, local or behind a URL. A file in it is there whole, or not at all.

job.json                       the manifest: input, settings, shape table
parts/part-00000.jsonl         the rows of a shard with their scores
rejects/part-00000.jsonl       its rows that could not be scored, if there are any
done/part-00000.123.json       its marker, which is written last: 123 bytes in its part, and what it took
summary.json                   the sum of all markers
"""

import errno
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax_rerank.jobs import files
from flax_rerank.jobs.rows import Reject

PARTS, REJECTS, DONE = "parts", "rejects", "done"
MARKER = re.compile(r"(part-(\d+))\.(\d+)\.json")
# What file systems without hard links answer.
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK)


@dataclass(frozen=True)
class JobFolder:
    """Where the files of a job are.

    Attributes:
        path: a path or URL.
        suffix: of the parts.
    """

    path: str
    suffix: str

    @property
    def manifest(self) -> str:
        return f"{self.path}/job.json"

    @property
    def summary(self) -> str:
        return f"{self.path}/summary.json"

    def part(self, shard: int) -> str:
        return f"{self.path}/{PARTS}/part-{shard:05d}{self.suffix}"

    def rejects(self, shard: int) -> str:
        return f"{self.path}/{REJECTS}/part-{shard:05d}.jsonl"

    def marker(self, shard: int, part_bytes: int) -> str:
        return f"{self.path}/{DONE}/part-{shard:05d}.{part_bytes}.json"

    def finished(self) -> dict[int, str]:
        """The markers of all finished shards, by shard: those with a part of the size that the marker's name says.

        Two listings tell that, however many shards there are.
        """
        parts = files.sizes(f"{self.path}/{PARTS}")
        markers = filter(None, map(MARKER.fullmatch, files.sizes(f"{self.path}/{DONE}")))
        return {
            int(shard): f"{self.path}/{DONE}/{marker[0]}"
            for marker in markers
            for stem, shard, size in [marker.groups()]
            if parts.get(stem + self.suffix) == int(size)
        }

    def remove_partial_files(self, shards: Iterable[int]) -> None:
        """Delete what killed processes left of the files of these shards, if the folder is local.

        An object in an object store is never left half-way.
        """
        stems = {f".part-{shard:05d}" for shard in shards}
        for folder in (PARTS, REJECTS, DONE) if not files.is_url(self.path) else ():
            for file in Path(self.path, folder).glob(f".*{files.PARTIAL}*"):
                if f".{file.name.split('.')[1]}" in stems:
                    file.unlink(missing_ok=True)


def read_json(path: str) -> Any:
    """What a JSON file holds; None if it does not exist.

    Raises:
        ValueError: the file is not JSON.
    """
    if not files.exists(path):
        return None
    with files.open_raw(path) as stream:
        text = stream.read()
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def write_json(path: str, value: Any) -> None:
    """Write a JSON file, or replace it."""
    with files.open_output(path) as sink:
        sink.write(_json(value))


def create_json(path: str, value: Any) -> bool:
    """Write a JSON file unless it exists. Returns whether this process wrote it.

    Of several processes, one alone does, except on a disk without hard links: there, processes that start at the same
    moment may each write it, and the last one stays.
    """
    if files.is_url(path):
        filesystem, name = files.filesystem_of(path)
        filesystem.makedirs(filesystem._parent(name), exist_ok=True)
        try:
            filesystem.pipe_file(name, _json(value), mode="create")
        except FileExistsError:
            return False
        return True
    complete = Path(f"{path}{files.PARTIAL}{secrets.token_hex(8)}")
    write_json(str(complete), value)
    try:
        os.link(complete, path)  # complete at once, and it fails if the file exists
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if os.path.exists(path):
            return False
        os.replace(complete, path)
    finally:
        complete.unlink(missing_ok=True)
    return True


def write_rejects(path: str, rejects: Iterable[Reject]) -> None:
    """Write rejected rows as JSON lines {"file", "line", "reason"}."""
    with files.open_output(path) as sink:
        for reject in rejects:
            record = {"file": reject.file, "line": reject.number, "reason": reject.reason}
            sink.write((json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
