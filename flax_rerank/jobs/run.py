"""Start a job or continue it, and put its parts together."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all

from flax_rerank.jobs import files
from flax_rerank.jobs.engines import LocalEngine, RayEngine
from flax_rerank.jobs.job import Job, read_json, write_json
from flax_rerank.jobs.manifest import Description, check, describe, differences
from flax_rerank.jobs.shards import Marker
from flax_rerank.jobs.stopping import StopSignals
from flax_rerank.jobs.summary import Summary, summarize

logger = logging.getLogger(__name__)


class Result(NamedTuple):
    """The result of a run of a job."""

    # All shards of the job are finished; if not, other processes still work on theirs. Always true for processes that
    # score the same shards together.
    complete: bool
    # Of all shards; while the job is not complete, of those that this process has just scored. None in a process that
    # writes nothing, since another one writes for it.
    summary: Summary | None


def run_job(job: Job, engine: LocalEngine | RayEngine, *, overwrite: bool = False) -> Result:
    """Score the shards that are not finished. With `overwrite`, first remove an output or another job.

    Raises as `score_files`; and ValueError for several processes that write one file or start over.
    """
    if engine.count > 1 and not engine.lock_step:
        if job.file is not None:
            raise ValueError(f"{engine.count} processes cannot write one file: give a folder as the output")
        if overwrite:
            raise ValueError(f"{engine.count} processes cannot start over together: remove {job.folder} first")
    with StopSignals(at_once=not engine.lock_step) as signals:
        shards = job.source.shards(job.shard_rows)
        description = describe(job, shards, engine.checkpoint_digest(job))
        signals.install()  # again, as the Ray engine started Ray to find the model
        summary = find_complete(job, description, overwrite) if engine.writes else None
        complete = summary is not None
        if engine.lock_step:  # the first process alone can tell
            complete = bool(broadcast_one_to_all(np.bool_(complete)))
        if complete:
            return Result(True, summary)
        written = engine.run(job, description, shards, signals)
        if not engine.writes:
            return Result(False, None)
        finished = job.finished()
        if len(finished) < len(shards):
            return Result(False, summarize(written))
        summary = None if written or job.file is not None else read_json(job.summary)
        if summary is None:
            with ThreadPoolExecutor(16) as pool:  # each is a request, if the folder is not on disk
                markers = list(pool.map(read_json, [finished[shard.index] for shard in shards]))
            summary = {**summarize(markers), "job": description}
            if job.file is not None:
                summary["bytes"] = join(job, job.file, markers)
            write_json(job.summary, summary)
            if job.file is not None:
                files.remove(job.folder)
        return Result(True, summary)


def find_complete(job: Job, description: Description, overwrite: bool) -> Summary | None:
    """The summary of an earlier run that completed the job's one file; None if there is work to do.

    Raises ValueError as `check`, and FileExistsError if this job did not write the file that exists.
    """
    if overwrite:
        remove_earlier(job)
    elif job.file is not None and files.exists(job.file):
        summary = read_json(job.summary) or {}
        if summary.get("job") == description and files.size(job.file) == summary["bytes"]:
            logger.info("%s is complete already", job.file)
            files.remove(job.folder)
            return summary
        if not files.exists(job.manifest):
            different = differences(summary["job"], description) if "job" in summary else []
            whose = f" and is another job's: {'; '.join(different)}" if different else ""
            raise FileExistsError(f"{job.file} exists{whose}. Give another output, or overwrite to start over")
    check(job, description)
    return None


def remove_earlier(job: Job) -> None:
    """Remove an earlier job, except the one file, which is replaced when the new one is complete."""
    if job.file is not None:
        files.remove(job.summary)
    # `check` refuses a folder without a manifest, which is removed last: it says what the others are.
    if read_json(job.manifest) is not None:
        for name in ("done", "parts", "rejects", "summary.json", "job.json"):
            files.remove(f"{job.folder}/{name}")


def join(job: Job, file: str, markers: Sequence[Marker]) -> int:
    """Put the parts together in one file, and their rejects in another. Returns the bytes of the first.

    After a kill at any point, the next start completes this.
    """
    job.format.join([job.part(marker["shard"]) for marker in markers], file)
    rejected = [job.rejects(marker["shard"]) for marker in markers if marker["rejects"]]
    if rejected:
        files.concatenate(rejected, job.all_rejects)
    else:
        files.remove(job.all_rejects)
    return files.size(file)
