"""What importing the package does, and what it leaves alone."""

import ast
import importlib.resources
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import flax_rerank
import flax_rerank.auto

ROOT = Path(__file__).parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
MAPPINGS = ("AUTO_RERANKER_MAPPING", "RERANKER_CLASS_MAPPING")
PROBE = """
import importlib.util, json, sys
before = importlib.util.find_spec("convert")
import flax_rerank
light = "jax" not in sys.modules
import flax_rerank.cli
light = light and "jax" not in sys.modules
from flax_rerank import *
import flax_rerank.convert
from jax._src import xla_bridge
print(json.dumps({
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    "backends": xla_bridge.backends_are_initialized(),
    "convert": before is not None,
    "light": light,
}))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """What a fresh interpreter, started elsewhere, has after importing the package."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.mark.parametrize("module", ["torch", "transformers", "orbax"])
def test_importing_the_package_does_not_import(imported, module):
    assert "flax_rerank" in imported["modules"]
    assert module not in imported["modules"]


def test_names_are_imported_on_first_use(imported):
    """So that a command handles signals before JAX is there."""
    assert imported["light"] is True


def test_importing_the_package_starts_no_backend(imported):
    assert imported["backends"] is False


def test_the_package_puts_no_convert_into_the_top_level(imported):
    assert imported["convert"] is False


def test_the_public_names_are_there():
    assert len(flax_rerank.__all__) == len(set(flax_rerank.__all__)) >= 10
    assert all(getattr(flax_rerank, name).__name__ == name for name in flax_rerank.__all__ if name not in MAPPINGS)
    assert all(getattr(flax_rerank, name) is getattr(flax_rerank.auto, name) for name in MAPPINGS)
    assert set(flax_rerank.__all__) <= set(dir(flax_rerank))
    with pytest.raises(AttributeError, match=r"module 'flax_rerank' has no attribute 'Reranker'"):
        _ = flax_rerank.Reranker
    checked = ast.parse((ROOT / "flax_rerank" / "__init__.py").read_text(encoding="utf-8"))
    for_editors = {
        alias.name for node in ast.walk(checked) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(flax_rerank.__all__) <= for_editors


def test_py_typed_is_installed():
    assert importlib.resources.files("flax_rerank").joinpath("py.typed").is_file()
    assert "py.typed" in SETUPTOOLS["package-data"]["flax_rerank"]


def test_every_package_is_installed():
    folders = [path.parent for path in (ROOT / "flax_rerank").rglob("__init__.py")]
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(SETUPTOOLS["packages"]) == packages | {"flax_rerank.convert"}
    assert SETUPTOOLS["package-dir"]["flax_rerank.convert"] == "convert"
