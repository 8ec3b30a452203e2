"""Strict settings, before anything runs, and rerankers of the reference cases."""

import atexit
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import pytest
from reference_cases import CASES

from flax_rerank import AbsReranker, FlaxAutoReranker

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compiling is what takes time. So LLVM optimises only what `optimized` modules compile, and what is compiled once
# in a session serves all of its tests, workers and subprocesses.
# A folder that FLAX_RERANK_TEST_CACHE names is still there for the next session. Nothing is written to the user's.
if "FLAX_RERANK_TEST_CACHE" not in os.environ:
    os.environ["FLAX_RERANK_TEST_CACHE"] = tempfile.mkdtemp(prefix="flax-rerank-tests-")
    atexit.register(shutil.rmtree, os.environ["FLAX_RERANK_TEST_CACHE"], ignore_errors=True)
os.environ["FLAX_RERANK_CACHE"] = os.environ["FLAX_RERANK_TEST_CACHE"]  # of processes without the settings below
for setting, value in {
    "jax_compilation_cache_dir": os.environ["FLAX_RERANK_TEST_CACHE"],
    "jax_compilation_cache_max_size": 2**30,  # with a limit, whatever it is, files are locked
    "jax_persistent_cache_min_compile_time_secs": 0.1,
    "jax_persistent_cache_min_entry_size_bytes": -1,
    "jax_disable_most_optimizations": True,
}.items():
    jax.config.update(setting, value)
    os.environ[setting.upper()] = str(value)


@pytest.fixture(autouse=True, scope="module")
def _optimizations(request: pytest.FixtureRequest) -> None:
    wanted = any(request.node.get_closest_marker(mark) for mark in ("optimized", "tpu_compile"))
    jax.config.update("jax_disable_most_optimizations", not wanted)


@cache
def _load_reranker(name: str, init: str, devices: int | None) -> AbsReranker:
    arguments = json.loads(init)
    if "peft_path" in arguments:
        arguments["peft_path"] = str(CASES / name / arguments["peft_path"])
    chosen = None if devices is None else jax.devices()[:devices]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'Yes' is 2 tokens", UserWarning)  # true of some of the small tokenizers
        return FlaxAutoReranker.from_finetuned(str(CASES / name), devices=chosen, show_progress_bar=False, **arguments)


@pytest.fixture(scope="session")
def reranker() -> Callable[..., AbsReranker]:
    """`reranker(case_name, init={}, devices=1)`: a reranker on that many devices (None for all), loaded once."""

    def load(name: str, init: dict[str, Any] | None = None, devices: int | None = 1) -> AbsReranker:
        return _load_reranker(name, json.dumps(init or {}, sort_keys=True), devices)

    return load
