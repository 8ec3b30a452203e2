"""The manifest: what a job's output depends on, so that a second start continues the same job or refuses.

Scores depend, by rounding, on the shapes of the batches. So the manifest holds the one table of shapes that all shards
are scored with, at any time and by any process.
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import zip_longest
from typing import Any

from flax_rerank.batching import Shape, Table, extended
from flax_rerank.jobs import files
from flax_rerank.jobs.job import Job, read_json, to_json
from flax_rerank.jobs.rows import Reject, Row, Shard
from flax_rerank.jobs.weights import Record, changed_weights, record_weights
from flax_rerank.rerankers import AbsReranker
from flax_rerank.sharding import DATA

JOB = "flax-rerank job"
FORMAT_VERSION = 3
KNOWN_WITH_THE_RERANKER = ("dtype", "platform", "mesh", "table", "weights")
MOST_NAMED = 3

Description = Mapping[str, Any]
Changes = Callable[[Job, Mapping[str, Record]], list[str]]


def describe(job: Job, shards: Sequence[Shard]) -> Description:
    """All that the output of a job depends on, except what is known only with the reranker (see `begin`)."""
    return {
        "format": JOB,
        "format_version": FORMAT_VERSION,
        "flax_rerank": version("flax-rerank"),
        "input": {"kind": job.source.kind, "files": job.source.digests()},
        "shards": len(shards),
        "shard_rows": job.shard_rows,
        "model": job.model,
        "settings": dict(job.settings),
    }


def check(job: Job, description: Description, changes: Changes = changed_weights) -> Mapping[str, Any] | None:
    """The manifest in the job's folder; None if the folder is empty or does not exist.

    Raises ValueError, with all that differs, for the manifest of another job, or if the folder holds something else.
    """
    manifest = read_json(job.manifest)
    if manifest is None:
        others = list(files.sizes(job.folder))
        if others:
            raise ValueError(
                f"{job.folder} is not the folder of a job: it holds {', '.join(others[:3])}. Give a new output"
            )
    elif not is_ours(manifest):
        raise ValueError(f"{job.manifest} was not written by a job. Give a new output")
    elif different := differences(manifest, description, job, changes):
        raise ValueError(
            f"{job.folder} holds another job: {'; '.join(different)}. Give another output, or overwrite to start over"
        )
    return manifest


def is_ours(description: Any) -> bool:
    """Whether a job wrote this description."""
    return isinstance(description, dict) and description.get("format") == JOB


class Manifest:
    """The manifest of a job that a reranker scores. If the job has none, it is written before the first shard is.

    The weights are hashed meanwhile, in a thread.

    Raises ValueError as `check`; or if the job began with another dtype, platform or mesh than the reranker has.
    """

    def __init__(self, job: Job, description: Description, shards: Sequence[Shard], reranker: AbsReranker) -> None:
        mesh = reranker.mesh
        self._job = job
        self._description = {
            **description,
            "dtype": reranker.dtype.name,
            "platform": mesh.devices.flat[0].platform,
            "mesh": ",".join(f"{axis}={size}" for axis, size in mesh.shape.items()),
        }
        self._weights: dict[str, Record] | None = None
        self._hashing: threading.Thread | None = None
        manifest = check(job, self._description)
        self.table = fit_table(job, shards, reranker) if manifest is None else _as_table(manifest)
        if manifest is None:
            # A pool would keep the process alive until all is hashed.
            self._hashing = threading.Thread(target=self._hash, name="hash", daemon=True)
            self._hashing.start()

    def write(self) -> None:
        """Write the manifest, unless it is there. Raises ValueError as `check`, if another process was first."""
        if self._hashing is None:
            return
        self._hashing.join()
        table = [list(shape) for shape in self.table]
        weights = record_weights(self._job) if self._weights is None else self._weights
        manifest = {**self._description, "table": table, "weights": weights}
        # If another process was first, it wrote the same: the table follows from what is in the description.
        if not files.create(self._job.manifest, to_json(manifest)):
            check(self._job, {**self._description, "table": table})
        self._hashing = None

    def _hash(self) -> None:
        with suppress(OSError, ValueError):  # `write` hashes again then, and raises it
            self._weights = record_weights(self._job)


def _as_table(manifest: Mapping[str, Any]) -> Table:
    return tuple(Shape(*shape) for shape in manifest["table"])


def fit_table(job: Job, shards: Sequence[Shard], reranker: AbsReranker) -> Table:
    """The shapes that fit the first shard, and some above these for longer pairs and queries in other shards.

    Raises ValueError, with the first row, if no row of the whole input can be scored.
    """
    first: str | None = None
    for shard in shards:
        rows = list(job.source.read(shard))
        good = [row for row in rows if isinstance(row, Row)]
        prepared = reranker.prepare([(row.query, row.passage) for row in good], skip_faulty=True)
        if prepared.table:
            break
        faults = {row.number: row.reason for row in rows if isinstance(row, Reject)}
        faults |= {good[index].number: reason for index, reason in prepared.faults.items()}
        if first is None and faults:
            first = f"{shard.file}:{min(faults)}: {faults[min(faults)]}"
    else:
        raise ValueError(f"no row of the input can be scored; {first or 'it has no rows'}")
    call = prepared.call
    return extended(prepared.table, call.template.max_tokens, call.most_around, reranker.mesh.shape[DATA])


def differences(
    there: Mapping[str, Any], here: Description, job: Job, changes: Changes = changed_weights
) -> list[str]:
    """What differs between two jobs, each as "name is value there and value here", and the files that changed."""
    if there.get("format_version") != FORMAT_VERSION:
        return [f"format_version is {there.get('format_version')} there and {FORMAT_VERSION} here"]
    if missing := {*here, "weights"} - set(there):
        return [f"it is damaged: it has no {', '.join(sorted(missing))}"]
    others = {"input", "weights", *(set(KNOWN_WITH_THE_RERANKER) - set(here))}
    before, now = ({**side, **side["settings"], "settings": None} for side in (there, here))
    different = [
        f"{name} is {_short(before.get(name))} there and {_short(now.get(name))} here"
        for name in {**before, **now}
        if name not in others and before.get(name) != now.get(name)
    ]
    return [*different, *_changed_input(there["input"], here["input"]), *changes(job, there["weights"])]


def _changed_input(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The files of an input that changed. Names do not count, since a file may be moved."""
    if there["kind"] != here["kind"]:
        return [f"input is {there['kind']} there and {here['kind']} here"]
    changed = []
    for before, now in zip_longest(there["files"], here["files"]):
        if before is None or now is None:
            name = (before or now)[0]
            changed.append(f"input file {name} {'is new' if before is None else 'is missing'}")
        elif before[1] != now[1]:
            changed.append(f"input file {now[0]} was changed")
    return changed[:MOST_NAMED] + [f"and {len(changed) - MOST_NAMED} more"] * (len(changed) > MOST_NAMED)


def _short(value: Any) -> str:
    if value is None:
        return "not given"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
