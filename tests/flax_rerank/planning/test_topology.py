import importlib.util

import jax
import pytest

from flax_rerank.planning.topology import find_topology


def test_gpus_and_cpus_are_counted():
    assert (find_topology("h100:8").chips, find_topology("h100:8").chip.platform) == (8, "gpu")
    assert len(find_topology("cpu:8").devices) == 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "'v9' is not a known chip .v4, v5e"),
        ("h100", "give the number of chips, as in h100:8"),
        ("v5e:8", "give the layout of the slice, as in v5e:2x4"),
        ("v5e:0x4", "give the layout of the slice, as in v5e:2x2"),
        ("cpu:1000", "1000 devices are needed, and JAX has started with 8"),
    ],
)
def test_names_that_say_nothing(name, message):
    jax.devices()  # from here on the number is fixed
    with pytest.raises(ValueError, match=message):
        find_topology(name)


def test_without_libtpu_the_message_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else found(name))
    with pytest.raises(ImportError, match=r"compiling for v5e:2x4 needs libtpu.* pip install 'flax-rerank\[tpu\]'"):
        find_topology("v5e:2x4")
