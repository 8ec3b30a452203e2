"""manifest.json: where a Flax checkpoint came from, and the sha256 of its files."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flax_rerank.params import CheckpointError

MANIFEST = "manifest.json"
BLOCK = 1 << 22
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


def verify_manifest(
    folder: Path, on_bytes: Callable[[int], None] = lambda count: None, *, within: str = "", limit: int | None = None
) -> list[str]:
    """Compare the files of a Flax checkpoint with its manifest.

    Args:
        folder: the checkpoint.
        on_bytes: is told how many bytes were read.
        within: only the files whose paths begin so.
        limit: bytes of a file from which on its size alone is compared; files that are not listed may then be there.

    Returns:
        What is wrong, file by file; empty when all is well.

    Raises:
        As `read_manifest`.
    """
    manifest = read_manifest(folder)
    listed = {name: digest for name, digest in manifest["files"].items() if name.startswith(within)}
    sizes = manifest.get("sizes", {})  # not in format 2
    there = {file.relative_to(folder).as_posix(): file for file in files_in(folder)}
    faults = [f"{name} is missing" for name in listed if name not in there]
    if limit is None:
        faults += [f"{name} is not in {MANIFEST}" for name in there if name not in listed]
    compared: dict[Path, str] = {}
    for name in listed.keys() & there.keys():
        size = there[name].stat().st_size
        if size != sizes.get(name, size):
            faults.append(f"{name} is damaged: it has {size:,} bytes, {MANIFEST} has {sizes[name]:,}")
        elif limit is None or size < limit:
            compared[there[name]] = name
    for file, digest in file_hashes(compared, on_bytes).items():
        name = compared[file]
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
