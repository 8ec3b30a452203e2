"""Devices and the mesh over them."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA, MODEL = "data", "model"

Devices = str | int | jax.Device | Sequence[str | int | jax.Device] | None


def find_devices(devices: Devices = None) -> list[jax.Device]:
    """JAX devices of what a caller names them by.

    Args:
        devices: None (all local devices of the default platform), a platform ("cpu", "gpu", "cuda", "tpu"),
            a platform and an index ("cuda:0", "tpu:3"), an index, a JAX device, or a list of these.

    Raises:
        ValueError: no such device.
    """
    if devices is None:
        return jax.local_devices()
    if isinstance(devices, str | int | jax.Device):
        devices = [devices]
    found: list[jax.Device] = []
    for device in devices:
        found += [device] if isinstance(device, jax.Device) else _find(device)
    if not found:
        raise ValueError("devices is an empty list; None stands for all devices")
    return list(dict.fromkeys(found))


def make_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """A mesh with the axes ("data", "model"), all devices on the data axis."""
    return jax.make_mesh(
        (len(devices), 1),
        (DATA, MODEL),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=np.asarray(devices),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device has the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh) -> NamedSharding:
    """The first axis is split over the data axis."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def _find(name: str | int) -> list[jax.Device]:
    platform, _, index = ("", "", str(name)) if isinstance(name, int) else name.partition(":")
    try:
        candidates = jax.local_devices(backend=platform or None)
    except RuntimeError as error:
        known = ", ".join(str(device) for device in jax.local_devices())
        raise ValueError(f"no device {name!r} here ({error}); there are: {known}") from error
    if not index:
        return candidates
    if not index.isdecimal() or int(index) >= len(candidates):
        raise ValueError(f"no device {name!r} here; there are: {', '.join(map(str, candidates))}")
    return [candidates[int(index)]]
