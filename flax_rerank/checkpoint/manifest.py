"""manifest.json: where a Flax checkpoint came from, and the sha256 of its files."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flax_rerank.params import CheckpointError

MANIFEST = "manifest.json"
BLOCK = 1 << 22
SMALL = 1 << 20  # bytes: of parameters, all but the arrays themselves
THREADS = min(4, os.cpu_count() or 1)


def file_hashes(
    files: Iterable[Path], on_bytes: Callable[[int], None] = lambda count: None, threads: int = THREADS
) -> dict[Path, str]:
    """The sha256 of files.

    Args:
        files: to read.
        on_bytes: is told how many bytes were read.
        threads: files that are read at a time.
    """

    def digest(file: Path) -> str:
        state = hashlib.sha256()
        block = bytearray(BLOCK)
        with file.open("rb", buffering=0) as stream:
            while count := stream.readinto(block):
                state.update(memoryview(block)[:count])
                on_bytes(count)
        return state.hexdigest()

    files = list(files)
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(files, pool.map(digest, files), strict=True))


def files_in(folder: Path) -> list[Path]:
    """All files in a checkpoint that the manifest is to list."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / MANIFEST)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a Flax checkpoint.

    Returns:
        `source` (name, revision, and the sha256 of each file, or null where these were not recorded), `dtype`, `date`
        (UTC), `converter`, and of every other file of the folder, by its path in it, the sha256 in `files` and the
        bytes in `sizes`.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is none.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no {MANIFEST} in {folder}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
            raise ValueError("it lists no files")
    except ValueError as error:
        raise CheckpointError(folder, [f"{MANIFEST} is damaged ({error})"]) from error
    return manifest


def file_faults(folder: Path, part: str) -> list[str]:
    """Compare the files in a part of a Flax checkpoint with its manifest, as far as that takes no time: whether they
    are there, their sizes, and the sha256 of small ones. Without a manifest, nothing is known.

    Args:
        folder: the checkpoint.
        part: a folder in it.

    Raises:
        CheckpointError: the manifest is damaged.
    """
    if not (folder / MANIFEST).is_file():
        return []
    manifest = read_manifest(folder)
    sizes = manifest.get("sizes", {})  # not in format 2
    faults, small = [], {}
    for name, digest in manifest["files"].items():
        file = folder / name
        if not name.startswith(f"{part}/"):
            continue
        if not file.is_file():
            faults.append(f"{name} is missing")
        elif (size := file.stat().st_size) != sizes.get(name, size):
            faults.append(f"{name} has {size:,} bytes, {MANIFEST} says {sizes[name]:,}")
        elif size < SMALL:
            small[file] = name, digest
    hashes = file_hashes(small)
    return faults + [f"{name} is damaged" for file, (name, digest) in small.items() if hashes[file] != digest]


def verify_manifest(folder: Path, on_bytes: Callable[[int], None] = lambda count: None) -> list[str]:
    """Compare every file of a Flax checkpoint with its manifest.

    Args:
        folder: the checkpoint.
        on_bytes: is told how many bytes were read.

    Returns:
        What is wrong, file by file; empty when all is well.

    Raises:
        As `read_manifest`.
    """
    listed: Mapping[str, str] = read_manifest(folder)["files"]
    there = {file.relative_to(folder).as_posix(): file for file in files_in(folder)}
    faults = [f"{name} is missing" for name in listed if name not in there]
    faults += [f"{name} is not in {MANIFEST}" for name in there if name not in listed]
    found = file_hashes((file for name, file in there.items() if name in listed), on_bytes)
    for file, digest in found.items():
        name = file.relative_to(folder).as_posix()
        if digest != listed[name]:
            faults.append(f"{name} is damaged: its sha256 is {digest}, {MANIFEST} has {listed[name]}")
    return faults


def describe_source(name: str, folder: Path) -> dict[str, Any]:
    """What the manifest says about a source whose files were not read for their sha256.

    Args:
        name: what the source was asked for by; of a path, the last part is kept.
        folder: where it lies, which for a snapshot from the hub says its revision.
    """
    if folder.parent.name == "snapshots":
        repository = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
        return {"name": repository, "revision": folder.name, "files": None}
    path = Path(name).expanduser()
    return {"name": path.resolve().name if path.is_dir() else name, "revision": None, "files": None}


def read_source(folder: Path) -> dict[str, Any] | None:
    """What the manifest of a Flax checkpoint says about its source; None if it has lost its manifest."""
    return read_manifest(folder)["source"] if (folder / MANIFEST).is_file() else None
