"""The parameters of a module, by their dotted paths: where they are read from, whether they fit, and where they go."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

Shape = tuple[int, ...]
Index = tuple[Any, ...]  # as in `array[index]`: an empty one is the whole array
ALIGNMENT = 64


class CheckpointError(ValueError):
    """A checkpoint does not fit its model, or its files are damaged. `faults` lists every reason found."""

    def __init__(self, source: object, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__(f"{source} cannot be loaded:\n" + "\n".join(f"  - {fault}" for fault in self.faults))


class Parameters(Protocol):
    """Parameters by their dotted paths, in memory or in a checkpoint. Any part of them can be read."""

    def shapes(self) -> Mapping[str, Shape]:
        """The shape of every parameter."""

    def dtypes(self) -> Mapping[str, np.dtype]:
        """The dtype of every parameter."""

    def read(self, path: str, dtype: np.dtype, index: Index = ()) -> np.ndarray:
        """The part `index` of a parameter, cast to `dtype`."""


class StoredParameters(Parameters, Protocol):
    """Parameters in the files of a checkpoint."""

    def restore(self, dtype: np.dtype, shardings: Mapping[str, NamedSharding]) -> Iterator[tuple[str, jax.Array]]:
        """The parameters, cast to `dtype`, by their dotted paths. Each device reads its part."""


class ArrayParameters:
    """Parameters in memory. Only the part that is read is copied to the host."""

    def __init__(self, arrays: Mapping[str, jax.Array]) -> None:
        self._arrays = arrays

    def shapes(self) -> Mapping[str, Shape]:
        return {path: array.shape for path, array in self._arrays.items()}

    def dtypes(self) -> Mapping[str, np.dtype]:
        return {path: np.dtype(array.dtype) for path, array in self._arrays.items()}

    def read(self, path: str, dtype: np.dtype, index: Index = ()) -> np.ndarray:
        return np.asarray(self._arrays[path][index]).astype(dtype, copy=False)


def largest_dtype(params: Parameters) -> np.dtype:
    """The dtype of a parameter, the largest one where they differ."""
    return max(params.dtypes().values(), key=lambda dtype: dtype.itemsize)


def parameters_of(module: nnx.Module) -> dict[str, nnx.Variable]:
    """The parameters of a module, by their dotted paths."""
    return _by_path(nnx.state(module))


def shapes_of(module: nnx.Module) -> dict[str, Shape]:
    """The shapes of the parameters of a module, abstract or not."""
    return {path: param.get_value().shape for path, param in parameters_of(module).items()}


def stacked_in(module: nnx.Module) -> set[str]:
    """The paths of the parameters whose first axis counts layers."""
    return {path for path, param in parameters_of(module).items() if param.get_metadata("axes")[0] == "layers"}


def shape_faults(found: Mapping[str, Shape], wanted: Mapping[str, Shape], what: str) -> list[str]:
    """A line for each array that is missing, left over or of another shape than the model wants; `what` is "tensor" or
    "parameter".
    """
    faults = [f"{what} {name} is missing" for name in wanted if name not in found]
    for name, shape in found.items():
        if name not in wanted:
            faults.append(f"{what} {name} {list(shape)} is left over")
        elif shape != wanted[name]:
            faults.append(f"{what} {name} has shape {list(shape)}, the config asks for {list(wanted[name])}")
    return faults


def empty(shape: Shape, dtype: np.dtype) -> np.ndarray:
    """An uninitialised array at an address that is a multiple of 64: the CPU backend of JAX takes such arrays as they
    are, and copies all others."""
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


def groups(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Names in their order, in groups of at most `limit` bytes. A name with more bytes has a group of its own."""
    group: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if group and filled + size > limit:
            yield group
            group, filled = [], 0
        group.append(name)
        filled += size
    yield group


def load_arrays(
    source: StoredParameters, dtype: np.dtype, shardings: Mapping[str, NamedSharding]
) -> dict[str, jax.Array]:
    """Read the parameters of a checkpoint onto devices, cast to `dtype`, each with its sharding."""
    arrays: dict[str, jax.Array] = {}
    before: jax.Array | None = None
    for path, array in source.restore(dtype, shardings):
        arrays[path] = array
        jax.block_until_ready(before)  # one parameter is on its way while the next is read, and no more
        before = arrays[path]
    return arrays


def place(shape: Shape, sharding: NamedSharding, read: Callable[[Index], np.ndarray]) -> jax.Array:
    """An array on devices. Each distinct part is read once, by an index with a slice for each axis, and put onto all
    of its devices.
    """
    devices: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True))
        devices.setdefault(bounds, []).append(device)
    arrays = []
    for bounds, holders in devices.items():
        part = read(tuple(slice(*bound) for bound in bounds))
        arrays += [jax.device_put(part, device) for device in holders]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def with_params(module: nnx.Module, params: Mapping[str, jax.Array]) -> nnx.Module:
    """A copy of a module with these parameters, by their dotted paths."""
    graphdef, state = nnx.split(module)
    for path, param in _by_path(state).items():
        param.set_value(params[path])
    return nnx.merge(graphdef, state)


def _by_path(state: nnx.State) -> dict[str, nnx.Variable]:
    return {".".join(map(str, path)): param for path, param in nnx.to_flat_state(state)}
