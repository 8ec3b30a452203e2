"""Start a job or go on with it, and put its parts together."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from flax_rerank.jobs import files
from flax_rerank.jobs.folder import DONE, PARTS, REJECTS, read_json, write_json
from flax_rerank.jobs.job import Job
from flax_rerank.jobs.manifest import Description, check, describe, differences
from flax_rerank.jobs.rows import Shard
from flax_rerank.jobs.shards import Marker
from flax_rerank.jobs.stopping import StopSignals
from flax_rerank.jobs.summary import Summary, summarize

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """What runs the shards of a job. See `flax_rerank.jobs.engines`."""

    @property
    def count(self) -> int: ...

    @property
    def lock_step(self) -> bool: ...

    @property
    def writes(self) -> bool: ...

    def checkpoint_digest(self, job: Job) -> str: ...

    def agree(self, complete: bool) -> bool: ...

    def run(
        self, job: Job, description: Description, shards: Sequence[Shard], signals: StopSignals
    ) -> Sequence[Marker]: ...


@dataclass(frozen=True)
class OneFile:
    """An output that is one file. The job's folder is beside it until the file is complete."""

    path: str

    @property
    def folder(self) -> str:
        return f"{self.path}.job"

    @property
    def rejects(self) -> str:
        return f"{self.path}.rejects.jsonl"

    @property
    def summary(self) -> str:
        return f"{self.path}.summary.json"


class Result(NamedTuple):
    """What a run of a job came to.

    Attributes:
        complete: whether all shards of the job are finished; if not, other processes still work on theirs.
        summary: of all shards; while the job is not complete, of those that this process has just scored.
            None in a process that writes nothing, since another one writes for it.
    """

    complete: bool
    summary: Summary | None


def run_job(job: Job, engine: Engine, *, file: OneFile | None = None, overwrite: bool = False) -> Result:
    """Score the shards that are not finished.

    Args:
        job: the job; its folder is `file.folder` where there is a `file`.
        engine: what runs its shards.
        file: put all parts together in this file, and remove the job's folder.
        overwrite: start anew, even if the output or another job exists.

    Raises:
        ValueError: the folder has another job in it; an input that is wrong as a whole; several processes for one
            file, or to start anew; in a strict job, a row that cannot be scored.
        FileExistsError: the file exists already.
        FloatingPointError: no score of a shard is finite.
        SystemExit: a signal to stop came; the code is 143 or 130. What was finished stays.
    """
    if engine.count > 1 and not engine.lock_step:
        if file is not None:
            raise ValueError(f"{engine.count} processes cannot write one file: give a folder as the output")
        if overwrite:
            raise ValueError(f"{engine.count} processes cannot start anew together: remove {job.folder} first")
    with StopSignals(at_once=not engine.lock_step) as signals:
        shards = job.source.shards(job.shard_rows)
        description = describe(job, shards, engine.checkpoint_digest(job))
        signals.install()  # to find the model, Ray was started, which takes them
        there = look(job, file, description, overwrite) if engine.writes else None
        if engine.agree(there is not None):
            return Result(True, there)
        written = engine.run(job, description, shards, signals)
        if not engine.writes:
            return Result(False, None)
        finished = job.files.finished()
        if len(finished) < len(shards):
            return Result(False, summarize(written))
        summary = None if written or file is not None else read_json(job.files.summary)
        if summary is None:
            with ThreadPoolExecutor(16) as pool:  # each is a request, if the folder is not on disk
                markers = list(pool.map(read_json, [finished[shard.index] for shard in shards]))
            summary = {**summarize(markers), "job": description}
            if file is None:
                write_json(job.files.summary, summary)
            else:
                summary = join(job, file, shards, markers, summary)
        return Result(True, summary)


def look(job: Job, file: OneFile | None, description: Description, overwrite: bool) -> Summary | None:
    """See what an earlier run left: the summary if it completed the one file, or None if there is work to do.

    Raises:
        ValueError: as `check`.
        FileExistsError: the file exists, and this job did not write it.
    """
    if overwrite:
        start_anew(job, file)
    elif file is not None and files.exists(file.path):
        summary = read_json(file.summary) or {}
        if summary.get("job") == description and files.size(file.path) == summary["bytes"]:
            logger.info("%s is complete already", file.path)
            files.remove_tree(file.folder)
            return summary
        if not files.exists(job.files.manifest):
            different = differences(summary["job"], description) if "job" in summary else []
            whose = f" and is another job's: {'; '.join(different)}" if different else ""
            raise FileExistsError(f"{file.path} exists{whose}. Give another output, or overwrite to start anew")
    check(job, description)
    return None


def start_anew(job: Job, file: OneFile | None) -> None:
    """Remove what an earlier job left, except the one file, which is replaced when the new one is complete.

    Raises:
        ValueError: the folder holds something other than a job.
    """
    if file is not None and files.exists(file.summary):
        files.remove(file.summary)
    if read_json(job.files.manifest) is None:
        return  # and `check` refuses a folder that holds something else
    # The manifest last: without it nobody would know what the rest is.
    for folder in (DONE, PARTS, REJECTS):
        files.remove_tree(f"{job.folder}/{folder}")
    for path in (job.files.summary, job.files.manifest):
        if files.exists(path):
            files.remove(path)


def join(
    job: Job, file: OneFile, shards: Sequence[Shard], markers: Sequence[Marker], summary: Mapping[str, object]
) -> Summary:
    """Put the parts together and remove the job's folder. A kill at any point leaves what a second start completes."""
    job.format.join([job.files.part(shard.index) for shard in shards], file.path)
    rejected = [job.files.rejects(marker["shard"]) for marker in markers if marker["rejects"]]
    if rejected:
        files.concatenate(rejected, file.rejects)
    elif files.exists(file.rejects):
        files.remove(file.rejects)
    summary = {**summary, "bytes": files.size(file.path)}
    write_json(file.summary, summary)
    files.remove_tree(file.folder)
    return summary
