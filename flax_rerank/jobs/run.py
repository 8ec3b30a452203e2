"""Start a job or continue it, and put its parts together."""

import json
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all

from flax_rerank.jobs import files
from flax_rerank.jobs.engines import LocalEngine, RayEngine
from flax_rerank.jobs.formats import SUFFIX
from flax_rerank.jobs.job import MARKER, Job, read_json, write_json
from flax_rerank.jobs.lock import locked
from flax_rerank.jobs.manifest import Changes, Description, check, describe, differences, is_ours
from flax_rerank.jobs.shards import Marker
from flax_rerank.jobs.stopping import StopSignals
from flax_rerank.jobs.summary import Summary, summarize
from flax_rerank.jobs.weights import changed_weights

logger = logging.getLogger(__name__)

# The names of the files that jobs write, by folder of the job.
NAMES = {
    "": re.compile(r"job\.json|summary\.json|parts|rejects|done"),
    "/parts": re.compile(rf"part-\d+(?:{SUFFIX.pattern})"),
    "/rejects": re.compile(r"part-\d+\.jsonl"),
    "/done": MARKER,
}


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
    lock = locked(job.file) if job.file is not None and engine.writes else nullcontext()
    with StopSignals(at_once=not engine.lock_step) as signals, lock:
        shards = job.source.shards(job.shard_rows)
        description = describe(job, shards)
        summary = find_complete(job, description, overwrite, engine.changed_weights) if engine.writes else None
        signals.install()  # again, as the Ray engine can have started Ray to compare the weights
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
            manifest = read_json(job.manifest)
            summary = {**summarize(markers), "job": {**description, "weights": manifest["weights"]}}
            if job.file is not None:
                summary["bytes"] = join(job, job.file, markers)
            write_json(job.summary, summary)
            if job.file is not None:
                remove_folder(job)
        return Result(True, summary)


def find_complete(
    job: Job, description: Description, overwrite: bool, changes: Changes = changed_weights
) -> Summary | None:
    """The summary of an earlier run that completed the job's one file; None if there is work to do.

    Raises ValueError as `check`, and FileExistsError if this job did not write the file that exists.
    """
    if job.file is not None:
        refuse_foreign(job)
    if overwrite:
        remove_earlier(job)
    elif job.file is not None and files.exists(job.file):
        summary = read_json(job.summary) or {}
        different = differences(summary["job"], description, job, changes) if "job" in summary else []
        if "job" in summary and not different and files.size(job.file) == summary.get("bytes"):
            logger.info("%s is complete already", job.file)
            remove_folder(job)
            return summary
        if not files.exists(job.manifest):
            whose = f" and was written by another job: {'; '.join(different)}" if different else ""
            raise FileExistsError(f"{job.file} exists{whose}. Give another output, or overwrite to start over")
    check(job, description, changes)
    return None


def remove_earlier(job: Job) -> None:
    """Remove an earlier job, except the one file, which is replaced when the new one is complete."""
    manifest, others = read_json(job.manifest), strangers(job)
    if manifest is not None and not is_ours(manifest):
        raise ValueError(f"{job.manifest} was not written by a job. Give a new output")
    if manifest is not None and others:
        raise ValueError(
            f"{job.folder} holds {', '.join(others[:3])}, which no job wrote. Move it, or give a new output"
        )
    if job.file is not None:
        files.remove(job.summary)
    # `check` refuses a folder without a manifest, which is removed last: it says what the others are.
    if manifest is not None:
        for name in ("done", "parts", "rejects", "summary.json", "job.json"):
            files.remove(f"{job.folder}/{name}")


def refuse_foreign(job: Job) -> None:
    """Raise FileExistsError if a summary or rejects beside the one file are not those of a job."""
    if files.exists(job.summary):
        summary = read_json(job.summary)
        if not isinstance(summary, dict) or not is_ours(summary.get("job")):
            raise FileExistsError(f"{job.summary} was not written by a job. Move it, or give another output")
    if files.exists(job.all_rejects):
        with files.open_raw(job.all_rejects) as stream:
            line = stream.read(files.BLOCK).partition(b"\n")[0]
        try:
            ours = set(json.loads(line)) == {"file", "line", "reason"}
        except (ValueError, TypeError):
            ours = False
        if not ours:
            raise FileExistsError(f"{job.all_rejects} was not written by a job. Move it, or give another output")


def strangers(job: Job) -> list[str]:
    """What is in the folder of a job and is not written by jobs."""
    return [
        f"{folder}/{name}".lstrip("/")
        for folder, ours in NAMES.items()
        for name in files.sizes(job.folder + folder)
        if not ours.fullmatch(name)
    ]


def remove_folder(job: Job) -> None:
    """Remove the folder of a finished job, unless somebody put something else into it."""
    if others := strangers(job):
        logger.warning("%s is not removed: it holds %s", job.folder, ", ".join(others[:3]))
    else:
        files.remove(job.folder)


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
