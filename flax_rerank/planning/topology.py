"""The devices of a topology by its name, whether this machine has them or not."""

import importlib.util
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jax

from flax_rerank.planning.chips import CHIPS, Chip

CPU = Chip("cpu", "cpu", math.inf, math.inf, math.inf, math.inf, math.inf, 1)
# Slices as they are rented.
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBIC = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
SLICES = {"v5e": FLAT, "v6e": FLAT, "v4": CUBIC, "v5p": CUBIC}
LIBTPU_SETTINGS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
CHIPS_PER_HOST = {"1x1": (1, 1, 1), "2x4": (2, 4, 1)}  # elsewhere 2x2


@dataclass(frozen=True)
class Topology:
    """Devices to plan for.

    Attributes:
        name: as in "v5e:2x4".
        devices: for a TPU, devices that programs can be compiled for without having them. For a GPU, devices of the
            CPU in their place: nothing is compiled for them.
    """

    name: str
    chip: Chip
    devices: tuple[jax.Device, ...]

    @property
    def chips(self) -> int:
        return len(self.devices)

    @property
    def hosts(self) -> int:
        return len({device.process_index for device in self.devices})

    @property
    def links(self) -> int:
        """How many neighbours the chip with the fewest has."""
        if self.chip.platform != "tpu":
            return self.chip.links
        places = {tuple(device.coords) for device in self.devices}
        return min(sum(math.dist(place, other) == 1 for other in places) for place in places)


def find_topology(name: str) -> Topology:
    """The topology called `name`. For a TPU, this sets libtpu's environment variables that are not set, and turns the
    compile cache of the process off.

    Args:
        name: a chip and how many of them: "v5e:2x4" (the layout of a TPU slice), "h100:8", "cpu:8".

    Raises:
        ValueError: the chip or its layout is not known.
        ImportError: libtpu, which a TPU topology needs, is not installed.
    """
    chip_name, _, layout = name.partition(":")
    chip = CPU if chip_name == CPU.name else CHIPS.get(chip_name)
    if chip is None:
        raise ValueError(
            f"topology {name!r}: {chip_name!r} is not a known chip ({', '.join(CHIPS)}); write v5e:2x4 or h100:8"
        )
    if chip.platform != "tpu":
        if not layout.isdecimal() or int(layout) < 1:
            raise ValueError(f"topology {name!r}: give the number of chips, as in {chip_name}:8")
        return Topology(name, chip, tuple(_stand_ins(int(layout))))
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", layout):
        nearest = _nearest_slice(chip_name, int(layout) if layout.isdecimal() else 4)
        raise ValueError(f"topology {name!r}: give the layout of the slice, as in {chip_name}:{nearest}")
    return Topology(name, chip, tuple(_tpu_devices(name, chip_name, layout)))


def larger_slices(topology: Topology) -> Iterator[Topology]:
    """Slices with more chips of the same kind, the smallest first; none for GPUs and CPUs."""
    for layout in SLICES.get(topology.chip.name, ()):
        if _chips(layout) > topology.chips:
            yield find_topology(f"{topology.chip.name}:{layout}")


def _tpu_devices(name: str, chip: str, layout: str) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            f"compiling for {name} needs libtpu, but no TPU: pip install 'flax-rerank[tpu]' (Linux). Plans for GPUs "
            "(h100:8) do not need it"
        )
    from jax.experimental import topologies
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    # A program for devices that this machine does not have cannot be read back from the cache.
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()
    # Otherwise libtpu asks a server which TPU it is on, complains, and locks out other processes.
    for setting, value in LIBTPU_SETTINGS.items():
        os.environ.setdefault(setting, value)
    settings: dict[str, Any] = {}
    if layout in CHIPS_PER_HOST:
        settings["chips_per_host_bounds"] = CHIPS_PER_HOST[layout]
    if chip == "v4":  # both cores of a chip are one device, as on a host that has one
        settings["chip_config_name"] = "megacore"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **settings).devices
    except jax.errors.JaxRuntimeError as error:
        reason, _, _ = str(error).partition("\n")
        nearest = _nearest_slice(chip, _chips(layout))
        raise ValueError(
            f"libtpu makes no topology {name!r} ({reason}); the nearest common slice is {chip}:{nearest}"
        ) from error


def _nearest_slice(chip: str, chips: int) -> str:
    return min(SLICES[chip], key=lambda layout: abs(math.log(_chips(layout) / max(chips, 1))))


def _chips(layout: str) -> int:
    return math.prod(map(int, layout.split("x")))


def _stand_ins(count: int) -> Sequence[jax.Device]:
    with suppress(RuntimeError):  # JAX has started already
        jax.config.update("jax_num_cpu_devices", max(count, jax.config.values["jax_num_cpu_devices"]))
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"{count} devices are needed, and JAX has started with {len(devices)} in this process: call find_topology "
            f"before JAX is used, or plan for cpu:{len(devices)}"
        )
    return devices[:count]
