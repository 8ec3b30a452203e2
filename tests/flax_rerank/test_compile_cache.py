"""The cache of compiled programs: where it is, and when there is none."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from flax_rerank.compile_cache import use_compile_cache

NAMES = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(autouse=True)
def no_cache():
    """Start without a cache, and put JAX's back to what it was."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


def folder():
    return jax.config.jax_compilation_cache_dir


def programs(path):
    return sorted(file.name for file in Path(path).glob("jit_*-cache"))


def test_the_default_is_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("FLAX_RERANK_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    use_compile_cache("default")
    assert folder() == f"{tmp_path}/.cache/flax-rerank"
    assert os.stat(folder()).st_mode & 0o777 == 0o700
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("FLAX_RERANK_CACHE", str(tmp_path / "mine"))
    use_compile_cache("default")
    assert folder() == str(tmp_path / "mine")


def test_a_cache_that_jax_has_already_stays(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    use_compile_cache("default")
    assert folder() == str(tmp_path)


def test_a_home_that_cannot_be_written_to_is_no_error(tmp_path, monkeypatch):
    file = tmp_path / "file"  # root may write to a folder of any mode, but not below a file
    file.write_text("")
    monkeypatch.setenv("FLAX_RERANK_CACHE", str(file / "cache"))
    use_compile_cache("default")
    assert folder() is None
    with pytest.raises(OSError, match="file"):
        use_compile_cache(file / "cache")


def test_what_a_killed_process_left_incomplete_is_written_again(tmp_path):
    use_compile_cache(tmp_path)
    jax.jit(lambda x: x * 3 + 1)(2.0)
    (program,) = [name for name in programs(tmp_path) if "lambda" in name]
    (tmp_path / program).write_bytes(b"half")
    (tmp_path / program.replace("-cache", "-atime")).unlink()
    jax.config.update("jax_compilation_cache_dir", None)
    use_compile_cache(tmp_path)
    assert program not in programs(tmp_path)
    jax.jit(lambda x: x * 3 + 1)(2.0)
    assert len((tmp_path / program).read_bytes()) > 1000


def test_processes_share_a_cache_that_stays_within_its_limit(tmp_path):
    """Two processes at once write six programs each into a cache that has room for few."""
    code = (
        "import sys, warnings, jax\n"
        "warnings.simplefilter('error')\n"
        "from flax_rerank import compile_cache\n"
        "compile_cache.MOST_BYTES = 12_000\n"
        "compile_cache.use_compile_cache(sys.argv[1])\n"
        "for n in range(6): assert jax.jit(lambda x: x * n + 1)(2.0) == 2 * n + 1\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {"JAX_PLATFORMS": "cpu"}
    running = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    sizes = [file.stat().st_size for file in tmp_path.glob("*-cache")]
    assert sizes
    assert sum(sizes) <= 12_000
