"""What a job is, and where its files are.

The folder of a job is local or behind a URL. A file in it is complete, or does not exist:

job.json                       the manifest: input, settings, shape table
parts/part-00000.jsonl         the rows of a shard with their scores
rejects/part-00000.jsonl       its rows that cannot be scored, if there are any
done/part-00000.123.json       its marker, which is written last: 123 bytes in its part, and what it took
summary.json                   the sum of all markers
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax_rerank.jobs import files
from flax_rerank.jobs.formats import Format
from flax_rerank.jobs.sources import Source
from flax_rerank.rerankers import AbsReranker

MARKER = re.compile(r"(part-(\d+))\.(\d+)\.json")


@dataclass(frozen=True)
class Job:
    """An input, a reranker and an output; small enough to send to another machine."""

    source: Source
    format: Format
    folder: str  # a path or URL that all machines see
    file: str | None  # the one file that the parts become, after which the folder is removed; None to keep the parts
    model: str  # the reranker's folder or its name on the hub
    load: Callable[[], AbsReranker]
    settings: Mapping[str, Any]  # what the output depends on apart from input and weights, by name; JSON values
    cache_dir: str | None  # where snapshots from the hub are kept
    shard_rows: int
    strict: bool  # stop at the first row that cannot be scored; by default it goes to the rejects
    warmup: bool  # compile all shapes before the first shard

    @property
    def manifest(self) -> str:
        return f"{self.folder}/job.json"

    @property
    def summary(self) -> str:
        return f"{self.folder}/summary.json" if self.file is None else f"{self.file}.summary.json"

    @property
    def all_rejects(self) -> str:
        return f"{self.file}.rejects.jsonl"

    def part(self, shard: int) -> str:
        return f"{self.folder}/parts/part-{shard:05d}{self.format.suffix}"

    def rejects(self, shard: int) -> str:
        return f"{self.folder}/rejects/part-{shard:05d}.jsonl"

    def marker(self, shard: int, part_bytes: int) -> str:
        return f"{self.folder}/done/part-{shard:05d}.{part_bytes}.json"

    def finished(self) -> dict[int, str]:
        """The markers of the finished shards, by shard: those with a part of the size in the marker's name."""
        # Two listings, however many shards there are: on an object store, each marker would be a request.
        parts = files.sizes(f"{self.folder}/parts")
        markers = filter(None, map(MARKER.fullmatch, files.sizes(f"{self.folder}/done")))
        return {
            int(marker[2]): f"{self.folder}/done/{marker[0]}"
            for marker in markers
            if parts.get(marker[1] + self.format.suffix) == int(marker[3])
        }

    def remove_partial_files(self, shards: Iterable[int]) -> None:
        """Delete what killed processes left of the files of these shards. Only local folders have such files."""
        stems = {f"part-{shard:05d}" for shard in shards}
        for file in () if files.is_url(self.folder) else Path(self.folder).glob(f"*/.*{files.PARTIAL}*"):
            if file.name.split(".")[1] in stems:
                file.unlink(missing_ok=True)


def read_json(path: str) -> Any:
    """What a JSON file holds; None if it does not exist. Raises ValueError if it is not JSON."""
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
        sink.write(to_json(value))


def to_json(value: Any) -> bytes:
    """A value as an indented JSON file."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
