"""Compiling for TPUs takes libtpu (no TPU), and minutes: it runs on its own, by `pytest -m tpu_compile`."""

import importlib.util

import pytest


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("libtpu") is None:
        for item in items:
            if item.get_closest_marker("tpu_compile"):
                item.add_marker(pytest.mark.skip(reason="libtpu is not installed: pip install -e '.[tpu]'"))
