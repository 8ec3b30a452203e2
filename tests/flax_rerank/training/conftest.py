"""Programs that run a few times on small models: what takes the time is compiling them."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def _compile_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
