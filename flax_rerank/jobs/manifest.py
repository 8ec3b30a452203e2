"""The manifest: what a job's output depends on, so that a second start continues the same job or refuses.

Scores depend, by rounding, on the shapes of the batches. So the manifest holds the one table of shapes that all shards
are scored with, at any time and by any process.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flax_rerank.batching import Shape, Table, extended
from flax_rerank.hub import CONFIG_FILES, PICKLE_FILES, WEIGHT_FILES, local_folder
from flax_rerank.jobs import files
from flax_rerank.jobs.job import Job, read_json, to_json
from flax_rerank.jobs.rows import Reject, Row, Shard
from flax_rerank.rerankers import AbsReranker
from flax_rerank.sharding import DATA
from flax_rerank.text.tokenizer import FILES as TOKENIZER_FILES

JOB = "flax-rerank job"
FORMAT_VERSION = 3
KNOWN_WITH_THE_RERANKER = ("dtype", "platform", "mesh", "table")
CHECKPOINT_FILES = (
    *(*CONFIG_FILES, *TOKENIZER_FILES, *WEIGHT_FILES, *PICKLE_FILES),
    *("adapter_model.*", "manifest.json", "params/**/*"),
)
SAMPLES, SAMPLE_BYTES = 64, 1 << 16

Description = Mapping[str, Any]


def describe(job: Job, shards: Sequence[Shard], weights: str) -> Description:
    """All that the output of a job depends on, except what is known only with the reranker (see `begin`)."""
    return {
        "format": JOB,
        "format_version": FORMAT_VERSION,
        "flax_rerank": version("flax-rerank"),
        "input": job.source.fingerprint(),
        "shards": len(shards),
        "shard_rows": job.shard_rows,
        "model": job.model,
        "weights": weights,
        "settings": dict(job.settings),
    }


def checkpoint_digest(job: Job) -> str:
    """A digest of the files of a job's checkpoint and adapter: all bytes of small files, samples of large ones."""
    digest = hashlib.sha256()
    for name in (job.model, job.settings.get("adapter")):
        if name is not None:
            folder = local_folder(name, job.cache_dir)
            found = {file for pattern in CHECKPOINT_FILES for file in folder.glob(pattern) if file.is_file()}
            for file in sorted(found):
                digest.update(json.dumps([str(file.relative_to(folder)), _sample(file)]).encode())
    return digest.hexdigest()


def check(job: Job, description: Description) -> Mapping[str, Any] | None:
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
    elif different := differences(manifest, description):
        raise ValueError(
            f"{job.folder} holds another job: {'; '.join(different)}. Give another output, or overwrite to start over"
        )
    return manifest


def is_ours(description: Any) -> bool:
    """Whether a job wrote this description."""
    return isinstance(description, dict) and description.get("format") == JOB


def begin(job: Job, description: Description, shards: Sequence[Shard], reranker: AbsReranker) -> Table:
    """The table of shapes of a job. Writes the manifest if the job has none.

    Raises ValueError as `check`; or if the job began with another dtype, platform or mesh than the reranker has.
    """
    mesh = reranker.mesh
    description = {
        **description,
        "dtype": reranker.dtype.name,
        "platform": mesh.devices.flat[0].platform,
        "mesh": ",".join(f"{axis}={size}" for axis, size in mesh.shape.items()),
    }
    manifest = check(job, description)
    if manifest is None:
        manifest = {**description, "table": fit_table(job, shards, reranker)}
        # If another process was first, it wrote the same: the table follows from what is in the description.
        if not files.create(job.manifest, to_json(manifest)):
            manifest = check(job, description) or manifest
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


def differences(there: Mapping[str, Any], here: Description) -> list[str]:
    """What differs between two jobs, each as "name is value there and value here"."""
    unknown = set(KNOWN_WITH_THE_RERANKER) - set(here)
    there, here = ({**side, **side.get("settings", {}), "settings": None} for side in (there, here))
    return [
        f"{name} is {_short(there.get(name))} there and {_short(here.get(name))} here"
        for name in {**there, **here}
        if name not in unknown and there.get(name) != here.get(name)
    ]


def _short(value: Any) -> str:
    if value is None:
        return "not given"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _sample(file: Path) -> list[Any]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= SAMPLES * SAMPLE_BYTES:
            return [size, hashlib.file_digest(stream, "sha256").hexdigest()]
        digest = hashlib.sha256()
        for number in range(SAMPLES):
            stream.seek(number * (size - SAMPLE_BYTES) // (SAMPLES - 1))
            digest.update(stream.read(SAMPLE_BYTES))
        return [size, digest.hexdigest()]
