"""The folder of a Flax checkpoint: its format, and that it appears whole or not at all."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from flax_rerank.checkpoint.manifest import CARD, MANIFEST, files_in, read_manifest
from flax_rerank.json_files import read_object
from flax_rerank.params import CheckpointError
from flax_rerank.text.tokenizer import FILES as TOKENIZER_FILES

FORMAT = "flax-rerank"
FORMAT_VERSION = 3
READABLE = (2, FORMAT_VERSION)  # in 2, a stacked parameter is one array
PARAMS = "params"
KEPT = "kept.safetensors"
ENTRIES = frozenset({"config.json", MANIFEST, PARAMS, KEPT, CARD, *TOKENIZER_FILES})
NEW, OLD = "new", "old"
REMOVALS = 20


def is_flax_config(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a Flax checkpoint."""
    return config.get("format") == FORMAT


def require_known_format(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a Flax checkpoint whose format this flax-rerank does not read."""
    version = config.get("format_version")
    if version in READABLE:
        return
    reads = " and ".join(map(str, READABLE))
    fault = f"config.json: its format version is {version}, this flax-rerank reads {reads}: "
    newer = isinstance(version, int) and version > FORMAT_VERSION
    raise CheckpointError(folder, [fault + ("upgrade flax-rerank" if newer else "convert the source again")])


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise FileExistsError if `path` exists and may not be replaced. With `overwrite`, an empty folder may be, or a
    Flax checkpoint that holds no other file; of those in params/, its manifest has a list."""
    if not path.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite (--overwrite) to replace it")
    refuse_foreign(path, "a Flax checkpoint", is_flax_config, ENTRIES)
    if not any(path.iterdir()):
        return
    try:
        listed = read_manifest(path)["files"]
    except (FileNotFoundError, CheckpointError) as error:
        raise FileExistsError(f"{path} is not overwritten: {error}; move it away first") from error
    for name in files_in(path):
        if name.startswith(f"{PARAMS}/") and name not in listed:
            raise FileExistsError(
                f"{path} is not overwritten: it holds {name}, which is not in its {MANIFEST}; move it away first"
            )


def refuse_foreign(
    path: Path,
    what: str,
    is_ours: Callable[[Mapping[str, Any]], bool],
    entries: Collection[str],
    folders: Collection[str] = (PARAMS,),
) -> None:
    """Raise FileExistsError unless `path` is an empty folder, or one whose config.json `is_ours` and that holds
    nothing but `entries`, of which `folders` are folders: all of it is removed when it is replaced."""
    if not path.is_dir():
        raise FileExistsError(f"{path} is a file, not {what}, so it is not overwritten")
    there = sorted(path.iterdir())
    if not there:
        return
    try:
        config = read_object(path / "config.json")
    except (OSError, ValueError):
        config = {}
    if not is_ours(config):
        raise FileExistsError(
            f"{path} is not overwritten: it has no config.json that says that it is {what}; move it away first"
        )
    for entry in there:
        if entry.name not in entries or entry.is_dir() != (entry.name in folders):
            raise FileExistsError(
                f"{path} is not overwritten: it holds {entry.name}, which is not part of {what}; move it away first"
            )


@contextmanager
def new_folder(
    path: Path,
    *,
    overwrite: bool = False,
    needed_bytes: int = 0,
    refuse: Callable[[Path, bool], None] = refuse_existing,
) -> Iterator[Path]:
    """A hidden folder beside `path` to write about `needed_bytes` to. It becomes `path` if all goes well, and is
    removed if not. What a killed process left is removed, and a checkpoint that it was about to replace is put back.

    Raises:
        FileExistsError: from `refuse`, if `path` exists and may not be replaced.
        OSError: the disk has too little room, or the parent cannot be written to.
    """
    path = path.resolve() if path.is_symlink() else path  # the folder is replaced, not the link to it
    parent, prefix = path.parent, f".{path.name}.partial-"
    parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        # While one process has the lock of the parent, no other one takes its new folder for one that was left.
        with _locked(parent, wait=True):
            for left in [entry for entry in parent.iterdir() if entry.name.startswith(prefix)]:
                with _locked(left) as abandoned:
                    if abandoned:
                        _put_back(left, path)
                        _remove(left)
            refuse(path, overwrite)
            free = shutil.disk_usage(parent).free
            if free < needed_bytes:
                reason = f"No space left on device: {needed_bytes:,} bytes are needed, {free:,} are free"
                raise OSError(errno.ENOSPC, reason, str(path))
            partial = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            stack.enter_context(_locked(partial))
        new = partial / NEW
        new.mkdir()
        try:
            with _named_as_in(path, new):
                yield new
            with _locked(parent, wait=True):
                refuse(path, overwrite)  # another process may have made it by now
                if path.exists():
                    os.replace(path, partial / OLD)
                os.replace(new, path)
                sync(parent)
        finally:
            _put_back(partial, path)
            _remove(partial)


@contextmanager
def _named_as_in(path: Path, new: Path) -> Iterator[None]:
    """An OSError of a file in `new` gets the name that the file would have had in `path`."""
    try:
        yield
    except OSError as error:
        file = Path(error.filename or new)
        if not file.is_relative_to(new):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path / file.relative_to(new))) from error


def _put_back(partial: Path, path: Path) -> None:
    """Move the old folder back to its place, if the new one has not taken it."""
    if (partial / OLD).exists() and not path.exists():
        os.replace(partial / OLD, path)


def _remove(partial: Path) -> None:
    """Remove what is left, config.json first: at no time is there half a checkpoint that has one.

    After a failed write, orbax may go on with others for a moment. A folder that cannot be removed is not an error,
    which would hide the first one: it is not a checkpoint, and the next conversion to `path` removes it.
    """
    for name in (NEW, OLD):
        (partial / name / "config.json").unlink(missing_ok=True)
    for _ in range(REMOVALS):
        shutil.rmtree(partial, ignore_errors=True)
        if not partial.exists():
            break
        time.sleep(0.1)


def sync(path: str | Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone has the folder; the lock ends with the process, however it ends."""
    import fcntl  # not on Windows, where checkpoints can be loaded nevertheless

    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
