"""What tells the files of a job's model apart: size and time at once, and a hash of every byte."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax_rerank.checkpoint import MANIFEST, PARAMS, read_manifest
from flax_rerank.checkpoint.manifest import sha256
from flax_rerank.hub import CONFIG_FILES, PICKLE_FILES, WEIGHT_FILES, local_folder
from flax_rerank.jobs.job import Job
from flax_rerank.text.tokenizer import FILES as TOKENIZER_FILES

FILES = (*CONFIG_FILES, *TOKENIZER_FILES, *WEIGHT_FILES, *PICKLE_FILES, "adapter_model.*", f"{PARAMS}/**/*")

Record = Mapping[str, Any]


def record_weights(job: Job) -> dict[str, Record]:
    """Size, time of change and SHA-256 of each file of a job's checkpoint and adapter, by its name.

    The arrays of a Flax checkpoint are one entry, `params`. Its hash is that of the hashes in the manifest, which the
    checkpoint's loader compares with the files; without a manifest all bytes are read. Takes about a second for each
    gigabyte that is read.
    """
    found = _files(job)
    hashes = _hashes(found)
    return {name: _stat(files) | {"sha256": hashes[name]} for name, files in found.items()}


def changed_weights(job: Job, recorded: Mapping[str, Record]) -> list[str]:
    """What differs from `record_weights` of an earlier time, by file. Only files with another time are read."""
    found = _files(job)
    stats = {name: _stat(files) for name, files in found.items()}
    changes = [f"{name} is missing" for name in recorded if name not in found]
    changes += [f"{name} is new" for name in found if name not in recorded]
    touched = {}
    for name in recorded.keys() & found.keys():
        if stats[name]["bytes"] != recorded[name]["bytes"]:
            changes.append(
                f"{name} was changed (size {stats[name]['bytes']:,} instead of {recorded[name]['bytes']:,})"
            )
        elif stats[name]["modified"] != recorded[name]["modified"]:
            touched[name] = found[name]
    changes += [
        f"{name} was changed" for name, digest in _hashes(touched).items() if digest != recorded[name]["sha256"]
    ]
    return sorted(changes)


def _files(job: Job) -> dict[str, list[Path]]:
    """The files of the checkpoint, and those of the adapter, by the names that are shown."""
    found: dict[str, list[Path]] = {}
    for name, within in ((job.model, ""), (job.settings.get("adapter"), "adapter/")):
        if name is None:
            continue
        folder = local_folder(name, job.cache_dir)
        for file in sorted({file for pattern in FILES for file in folder.glob(pattern) if file.is_file()}):
            in_params = PARAMS in file.relative_to(folder).parts
            found.setdefault(within + (PARAMS if in_params else file.name), []).append(file)
    return found


def _stat(files: list[Path]) -> dict[str, int]:
    stats = [file.stat() for file in files]
    return {"bytes": sum(stat.st_size for stat in stats), "modified": max(stat.st_mtime_ns for stat in stats)}


def _hashes(found: Mapping[str, list[Path]]) -> dict[str, str]:
    hashes = {}
    for name, files in found.items():
        if name != PARAMS:
            hashes[name] = sha256(files[0])
            continue
        folder = next(parent for parent in files[0].parents if parent.name == PARAMS).parent
        if (folder / MANIFEST).is_file():
            listed = read_manifest(folder)["files"]
            digests = {file: digest for file, digest in listed.items() if file.startswith(f"{PARAMS}/")}
        else:
            digests = {file.relative_to(folder).as_posix(): sha256(file) for file in files}
        hashes[name] = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    return hashes
