"""manifest.json: where a Flax checkpoint came from, and the sha256 of its files."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flax_rerank.field_types import fits
from flax_rerank.json_files import read_object
from flax_rerank.params import CheckpointError

MANIFEST = "manifest.json"
CARD = "README.md"
THREADS = min(4, os.cpu_count() or 1)


def sha256(file: Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_hashes(files: Iterable[Path], on_bytes: Callable[[int], object] = lambda count: None) -> dict[Path, str]:
    """The sha256 of files, a few at a time. `on_bytes` gets the size of each file that was read."""
    files = list(files)
    hashes: dict[Path, str] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for file, digest in zip(files, pool.map(sha256, files), strict=True):
            hashes[file] = digest
            on_bytes(file.stat().st_size)
    return hashes


def files_in(folder: Path) -> dict[str, Path]:
    """All files of a checkpoint that the manifest lists, by their paths in it: not the card, which may change."""
    left_out = (folder / MANIFEST, folder / CARD)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file not in left_out)
    return {file.relative_to(folder).as_posix(): file for file in files}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a Flax checkpoint: `source` (name, revision, and the sha256 of its files or null), `dtype`,
    `date` (UTC), `converter`, and of every other file, by its path, the sha256 in `files` and the bytes in `sizes`.

    Raises:
        FileNotFoundError, CheckpointError: the manifest is missing or damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no {MANIFEST} in {folder}")
    try:
        manifest = read_object(path)
        for name, kind in (("files", str), ("sizes", int)):
            listed = manifest.get(name, {} if name == "sizes" else None)  # there are no sizes in format 2
            if not isinstance(listed, dict) or not all(type(value) is kind for value in listed.values()):
                raise ValueError(f"{name} must map paths to {'hashes' if kind is str else 'bytes'}")
        source = manifest.get("source") or {}
        if not isinstance(source, dict) or not all(
            fits(source.get(name), str | None) for name in ("name", "revision")
        ):
            raise ValueError("source must be null or an object with the strings name and revision")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(folder, [f"{MANIFEST} is damaged ({error})"]) from error
    return manifest


def verify_manifest(folder: Path, *, within: str | tuple[str, ...] = "", limit: int | None = None) -> list[str]:
    """What is wrong with the files of a Flax checkpoint according to its manifest; empty when all is well.

    Only paths that begin with `within`, or one of them, are compared. Of files of `limit` bytes and more only the
    size is compared, and files that are not listed are accepted.

    Raises:
        As `read_manifest`.
    """
    manifest, there = read_manifest(folder), files_in(folder)
    listed = {name: digest for name, digest in manifest["files"].items() if name.startswith(within)}
    sizes = manifest.get("sizes", {})
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
    for file, digest in file_hashes(compared).items():
        name = compared[file]
        if digest != listed[name]:
            faults.append(f"{name} is damaged: its sha256 is {digest}, {MANIFEST} has {listed[name]}")
    return faults


def describe_source(name: str, folder: Path, hashes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The manifest's entry for a source. Of a path, the last part is its name; the folder of a snapshot from the hub
    tells repository and revision. `hashes` are the sha256 of its files, if they were read.
    """
    revision = None
    if folder.parent.name == "snapshots":
        name, revision = folder.parent.parent.name.removeprefix("models--").replace("--", "/"), folder.name
    elif Path(name).expanduser().is_dir():
        name = Path(name).expanduser().resolve().name
    return {"name": name, "revision": revision, "files": hashes}
