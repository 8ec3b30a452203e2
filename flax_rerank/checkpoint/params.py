"""The parameters of a Flax checkpoint on disk: an orbax tree, in which a stacked parameter is one leaf a layer.

Leaves are small that way, so that a model is written and read a few at a time; on the devices they are stacked again.
"""

import errno
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from flax_rerank.params import CheckpointError, Index, Parameters, Shape

CHUNK_BYTES = 4 << 20  # a device that has a part of a leaf reads little more than that part
GROUP_BYTES = 512 << 20  # of leaves that are written at a time, while the next are read
READ_ERRORS = (ValueError, OSError, KeyError)


def write_params(
    folder: Path,
    params: Parameters,
    dtype: np.dtype,
    stacked: set[str],
    on_bytes: Callable[[int], None] = lambda count: None,
) -> None:
    """Write an orbax tree. A few leaves are in memory at a time.

    Args:
        folder: to be made.
        params: are read leaf by leaf.
        dtype: that they are written in.
        stacked: the paths of those whose first axis counts layers.
        on_bytes: is told how many bytes were written.

    Raises:
        OSError: orbax could not write.
    """

    def write(group: dict[str, np.ndarray]) -> None:
        with _orbax() as ocp, _written(folder):
            ocp.partial.save(folder.resolve(), unflatten_dict(group, sep="."))
        on_bytes(sum(array.nbytes for array in group.values()))

    with ThreadPoolExecutor(1) as pool:  # after an error, too, it ends when nothing is written any more
        writing: Future[None] | None = None
        for group in _groups(params, dtype, stacked):
            if writing is not None:
                writing.result()
            writing = pool.submit(write, group)
    writing.result()
    with _orbax() as ocp, _written(folder):
        ocp.partial.finalize(folder.resolve())


def _groups(params: Parameters, dtype: np.dtype, stacked: set[str]) -> Iterator[dict[str, np.ndarray]]:
    """The leaves, in groups of `GROUP_BYTES` or of one."""
    group: dict[str, np.ndarray] = {}
    size = 0
    for path, shape in params.shapes().items():
        rest = (slice(None),) * (len(shape) - 1)
        layers = range(shape[0]) if path in stacked else (None,)
        nbytes = math.prod(shape) * dtype.itemsize // len(layers)
        for layer in layers:
            if group and size + nbytes > GROUP_BYTES:
                yield group
                group, size = {}, 0
            if layer is None:
                group[path] = params.read(path, dtype)
            else:
                group[f"{path}.{layer}"] = params.read(path, dtype, (slice(layer, layer + 1), *rest))[0]
            size += nbytes
    yield group


class StoredParams:
    """The parameters in the orbax folder of a Flax checkpoint, of which any part can be read.

    Those of format 2, in which a stacked parameter is one leaf, are read as well.

    Args:
        folder: the orbax folder.

    Raises:
        FileNotFoundError: there is no such folder.
        CheckpointError: it holds no tree that can be read.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"no weights in {folder.parent}: looked for {folder.name}/")
        self._folder = folder.resolve()
        with self._orbax() as ocp:
            self._leaves = flatten_dict(ocp.metadata(self._folder).metadata, sep=".")
        self._layers: dict[str, dict[int, str]] = {}  # of a stacked parameter, the leaf of each layer
        for name in self._leaves:
            path, _, layer = name.rpartition(".")
            if layer.isdecimal():
                self._layers.setdefault(path, {})[int(layer)] = name
        for path, layers in self._layers.items():
            shapes = {self._leaves[name].shape for name in layers.values()}
            if layers.keys() != set(range(len(layers))) or len(shapes) > 1:
                raise self._damaged(path, f"it has the layers {sorted(layers)}, of the shapes {sorted(shapes)}")

    def shapes(self) -> dict[str, Shape]:
        """The shape of every parameter, by its dotted path."""
        return {
            path: (len(layers), *self._leaves[layers[0]].shape) if layers else tuple(self._leaves[path].shape)
            for path, layers in self._by_path().items()
        }

    def dtypes(self) -> dict[str, np.dtype]:
        """The dtype of every parameter, by its dotted path."""
        return {
            path: np.dtype(self._leaves[layers[0] if layers else path].dtype)
            for path, layers in self._by_path().items()
        }

    def read(self, path: str, dtype: np.dtype, index: Index = ()) -> np.ndarray:
        """The part `index` of a parameter, cast to `dtype`; the leaves that it lies in are read whole."""
        layers = self._layers.get(path)
        if not layers:
            return self._load(path, {path: np.empty(0, dtype)})[path][index]
        chosen, *rest = index or (slice(None),)
        if isinstance(chosen, int):
            return self._load(path, {layers[chosen]: np.empty(0, dtype)})[layers[chosen]][tuple(rest)]
        names = [layers[layer] for layer in range(len(layers))[chosen]]
        leaves = self._load(path, dict.fromkeys(names, np.empty(0, dtype)))
        return np.stack([leaves[name][tuple(rest)] for name in names])

    def restore(self, path: str, dtype: np.dtype, sharding: NamedSharding) -> jax.Array:
        """A parameter, cast to `dtype`. Each device reads its part."""
        shape, layers = self.shapes()[path], self._layers.get(path)
        if not layers:
            return self._load(path, {path: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)})[path]
        of_layer = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
        leaves = self._load(
            path, dict.fromkeys(layers.values(), jax.ShapeDtypeStruct(shape[1:], dtype, sharding=of_layer))
        )
        put = jax.jit(_put_layer, donate_argnums=0, out_shardings=sharding)
        stack = jnp.zeros(shape, dtype, device=sharding)
        for layer, name in layers.items():
            stack = put(stack, leaves.pop(name), layer)
        return stack

    def _by_path(self) -> dict[str, dict[int, str]]:
        """The layers of each parameter; empty where it is one leaf."""
        single = {name: {} for name in self._leaves if name.rpartition(".")[0] not in self._layers}
        return single | self._layers

    def _load(self, path: str, abstract: dict[str, Any]) -> dict[str, Any]:
        """Leaves of a parameter, as arrays of the kind and dtype of the abstract ones."""
        with self._orbax(path) as ocp:
            return flatten_dict(ocp.load(self._folder, unflatten_dict(abstract, sep=".")), sep=".")

    @contextmanager
    def _orbax(self, path: str = "") -> Iterator[Any]:
        try:
            with _orbax() as ocp:
                yield ocp
        except READ_ERRORS as error:
            raise self._damaged(path, str(error)) from error

    def _damaged(self, path: str, reason: str) -> CheckpointError:
        what = f"parameter {path} in " if path else ""
        return CheckpointError(self._folder.parent, [f"{what}{self._folder.name}/ is damaged ({reason[:300]})"])


def _put_layer(stack: jax.Array, layer: jax.Array, index: jax.Array) -> jax.Array:
    """`stack[index] = layer`, in place. As whole numbers: XLA's CPU backend copies bfloat16 number by number, 1.4 GB
    in 2.3 s instead of 0.3 s."""
    bits = jnp.dtype(f"uint{8 * stack.dtype.itemsize}")
    stack_bits, layer_bits = (jax.lax.bitcast_convert_type(array, bits) for array in (stack, layer))
    return jax.lax.bitcast_convert_type(
        jax.lax.dynamic_update_slice_in_dim(stack_bits, layer_bits[None], index, 0), stack.dtype
    )


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Orbax raises ValueError for what the disk refuses."""
    try:
        yield
    except ValueError as error:
        raise OSError(errno.EIO, f"orbax could not write ({str(error)[:300]})", str(folder)) from error


@contextmanager
def _orbax() -> Iterator[Any]:
    """Orbax, and how it is to write and read."""
    import orbax.checkpoint.experimental.v1 as ocp

    def storage(path: Any, array: np.ndarray) -> Any:
        return ocp.options.ArrayOptions.Saving.StorageOptions(chunk_byte_size=chunk_bytes(array.shape, array.dtype))

    context = ocp.Context()
    context.array.saving.use_compression = False
    context.array.saving.scoped_storage_options_creator = storage
    context.memory.deepcopy_host_arrays = False
    context.pytree.loading.partial_load = True
    # A process waits for no other one: each may load a model of its own.
    context.multiprocessing.primary_host = jax.process_index()
    context.multiprocessing.active_processes = {jax.process_index()}
    with context:
        yield ocp


def chunk_bytes(shape: Shape, dtype: np.dtype) -> int:
    """The size of the chunks that a leaf is stored in. Orbax divides axes by their prime factors: MiniCPM's
    vocabulary, of 122,753 tokens, is itself a prime, and would be cut into as many chunks."""
    size = math.prod(shape) * dtype.itemsize
    return max(CHUNK_BYTES, *(size // axis * _largest_prime(axis) for axis in shape))


def _largest_prime(number: int) -> int:
    factor = 2
    while factor * factor <= number:
        if number % factor:
            factor += 1
        else:
            number //= factor
    return number
