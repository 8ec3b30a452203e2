"""The devices of a topology by its name, whether this machine has them or not, and the peaks of their chips."""

import importlib.util
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jax

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One chip, as a scheduler rents it. Operations are dense matrix products, units are decimal.

    Attributes:
        memory: bytes that a program may use.
        flops: bfloat16 operations a second.
        float32_flops: float32 operations a second, at full precision.
        bandwidth: bytes a second between the chip and its memory.
        link_bandwidth: bytes a second that one link to a neighbour sends.
        links: how many there are on a chip; in small slices some lead nowhere.
    """

    platform: str
    memory: float
    flops: float
    float32_flops: float
    bandwidth: float
    link_bandwidth: float
    links: int


# By what the names of topologies begin with, from the makers' public specifications.
# TPUs: peak compute, bandwidth and interconnect (its total over the links of a chip) are the key specifications in
# https://cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e. A product in full float32 takes six passes in bfloat16
# (precision "highest"). Memory is what libtpu's compiler lets a program have of the 32, 16, 95 and 32 GB.
# GPUs: data sheets of the SXM versions, https://www.nvidia.com/en-us/data-center/a100, /h100 and /h200; float32 is
# that of the units for it, not TF32. Memory: nine tenths, the rest is for the driver and what is not on the roofline.
CHIPS = {
    "v4": Chip("tpu", 30.75 * GIB, 275e12, 275e12 / 6, 1200e9, 2400e9 / 8 / 6, 6),
    "v5e": Chip("tpu", 15.75 * GIB, 197e12, 197e12 / 6, 819e9, 1600e9 / 8 / 4, 4),
    "v5p": Chip("tpu", 95.74 * GIB, 459e12, 459e12 / 6, 2765e9, 4800e9 / 8 / 6, 6),
    "v6e": Chip("tpu", 31.25 * GIB, 918e12, 918e12 / 6, 1638e9, 3200e9 / 8 / 4, 4),
    "a100": Chip("gpu", 0.9 * 80e9, 312e12, 19.5e12, 2039e9, 0, 0),
    "h100": Chip("gpu", 0.9 * 80e9, 989e12, 67e12, 3350e9, 0, 0),
    "h200": Chip("gpu", 0.9 * 141e9, 989e12, 67e12, 4800e9, 0, 0),
    "cpu": Chip("cpu", math.inf, math.inf, math.inf, math.inf, math.inf, 1),
}
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
    kind, _, layout = name.partition(":")
    if kind not in CHIPS:
        raise ValueError(
            f"topology {name!r}: {kind!r} is not a known chip ({', '.join(CHIPS)}); write v5e:2x4 or h100:8"
        )
    chip = CHIPS[kind]
    if chip.platform == "tpu":
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", layout):
            nearest = _nearest_slice(kind, int(layout) if layout.isdecimal() else 4)
            raise ValueError(f"topology {name!r}: give the layout of the slice, as in {nearest}")
        return Topology(name, chip, tuple(_tpu_devices(kind, layout)))
    if not layout.isdecimal() or int(layout) < 1:
        raise ValueError(f"topology {name!r}: give the number of chips, as in {kind}:8")
    return Topology(name, chip, tuple(_cpu_devices(int(layout))))


def larger_slices(topology: Topology) -> Iterator[Topology]:
    """Slices with more chips of the same kind, the smallest first; none for GPUs and CPUs."""
    kind, _, _ = topology.name.partition(":")
    return (find_topology(f"{kind}:{each}") for each in SLICES.get(kind, ()) if _chips(each) > topology.chips)


def _tpu_devices(kind: str, layout: str) -> Sequence[jax.Device]:
    name = f"{kind}:{layout}"
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
    if kind == "v4":  # both cores of a chip are one device, as on a host that has one
        settings["chip_config_name"] = "megacore"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **settings).devices
    except jax.errors.JaxRuntimeError as error:
        reason, _, _ = str(error).partition("\n")
        nearest = _nearest_slice(kind, _chips(layout))
        raise ValueError(
            f"libtpu makes no topology {name!r} ({reason}); the nearest common slice is {nearest}"
        ) from error


def _nearest_slice(kind: str, chips: int) -> str:
    return f"{kind}:" + min(SLICES[kind], key=lambda layout: abs(math.log(_chips(layout) / max(chips, 1))))


def _chips(layout: str) -> int:
    return math.prod(map(int, layout.split("x")))


def _cpu_devices(count: int) -> Sequence[jax.Device]:
    with suppress(RuntimeError):  # JAX has started already
        jax.config.update("jax_num_cpu_devices", max(count, jax.config.values["jax_num_cpu_devices"]))
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"{count} devices are needed, and JAX has started with {len(devices)} in this process: call find_topology "
            f"before JAX is used, or plan for cpu:{len(devices)}"
        )
    return devices[:count]
