"""What a job is: an input, a reranker, an output."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flax_rerank.jobs.folder import JobFolder
from flax_rerank.jobs.rows import Format, Source
from flax_rerank.rerankers import AbsReranker


@dataclass(frozen=True)
class Job:
    """A job, small enough to be sent to another machine.

    Attributes:
        source: the input.
        format: of the output.
        folder: where the parts of the output go, a path or URL that all machines see.
        model: the reranker's folder or name on the hub.
        load: makes the reranker.
        settings: what the output depends on beside the input and the weights, by name; JSON values.
        adapter: the folder or name of an adapter, if there is one.
        cache_dir: where snapshots from the hub are kept.
        shard_rows: rows of a shard.
        strict: stop at the first row that cannot be scored; by default it goes to the rejects.
        warmup: compile all shapes before the first shard.
    """

    source: Source
    format: Format
    folder: str
    model: str
    load: Callable[[], AbsReranker]
    settings: Mapping[str, Any]
    adapter: str | None
    cache_dir: str | None
    shard_rows: int
    strict: bool
    warmup: bool

    @property
    def files(self) -> JobFolder:
        """The files of the job's folder."""
        return JobFolder(self.folder, self.format.suffix)
