"""Compiling for TPUs takes minutes and libtpu (no TPU): it runs on its own, with `pytest -m tpu_compile`."""

import importlib.util

import jax
import pytest


def pytest_collection_modifyitems(config, items):
    reason = None
    if "tpu_compile" not in (config.option.markexpr or ""):
        reason = "takes minutes: pytest -m tpu_compile"
    elif importlib.util.find_spec("libtpu") is None:
        reason = "libtpu is not installed: pip install -e '.[tpu]'"
    for item in items:
        if reason is not None and item.get_closest_marker("tpu_compile"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def _compile_anew():
    """Programs for devices that are not there cannot be loaded from a cache."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)
