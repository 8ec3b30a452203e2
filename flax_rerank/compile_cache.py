"""Compiled programs that outlive the process, in JAX's persistent compilation cache."""

import os
from pathlib import Path

import jax

USERS = "default"  # the value of the setting that stands for the user's cache folder
MOST_BYTES = 2 << 30


def use_compile_cache(folder: str | os.PathLike[str]) -> None:
    """Keep every compiled program of this process in a folder, and take it from there next time.

    A program is found again by the same versions of jax and flax_rerank, for the same model shape, step shapes and
    kind of device. A local folder holds `MOST_BYTES` at most: the programs that were not used for longest go first.
    Processes may share it, since JAX locks it.

    Args:
        folder: a path, or gs:// on Google Cloud. "default" is the user's cache folder: `FLAX_RERANK_CACHE`, else
            `flax-rerank` in `XDG_CACHE_HOME`, else `~/.cache/flax-rerank`. It changes nothing if JAX has a cache
            already or if the folder cannot be written to.

    Raises:
        OSError: a folder that was named cannot be written to.
    """
    present = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if os.fspath(folder) != USERS:
        if os.fspath(folder) != present:
            _set(os.fspath(folder))
    elif present is None and (users := _users_folder()) is not None:
        try:
            _set(users)
        except OSError:  # a home that is read-only, or that does not lock files: nothing is kept
            return


def _users_folder() -> str | None:
    """The user's cache folder, where the system knows one."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.environ.get("FLAX_RERANK_CACHE") or f"{caches}/flax-rerank"
    return None if folder.startswith("~") else folder  # there is no home


def _set(folder: str) -> None:
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    local = "://" not in folder
    if local:
        _tidy(Path(folder))
    # With a limit, files are locked, and only local ones can be.
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES if local else -1)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    reset_cache()  # else a process that has already compiled would keep its old cache


def _tidy(folder: Path) -> None:
    """Make the folder, and remove programs that a killed process or a full disk left incomplete.

    JAX writes the time of use after the program, and removes nothing any more once a time is missing.
    """
    from filelock import FileLock

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # whoever may write to it could run code here
    with FileLock(folder / ".lockfile", timeout=10):  # a timeout is an OSError
        names = set(os.listdir(folder))
        for name in names:
            if name.endswith("-cache") and f"{name.removesuffix('cache')}atime" not in names:
                (folder / name).unlink()
