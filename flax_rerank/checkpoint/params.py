"""The parameters of a Flax checkpoint on disk: an orbax tree, in which a stacked parameter is one leaf a layer.

Leaves are small that way, so that a model is written and read a few at a time; on the devices they are stacked again.
"""

import errno
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from flax_rerank.checkpoint.folder import PARAMS
from flax_rerank.checkpoint.manifest import MANIFEST, verify_manifest
from flax_rerank.params import CheckpointError, Index, Parameters, Shape, groups, shape_faults, shapes_of
from flax_rerank.quantization import DequantizedParams
from flax_rerank.text.tokenizer import FILES as TOKENIZER_FILES

CHUNK_BYTES = 4 << 20  # a device that has a part of a leaf reads little more than that part
GROUP_BYTES = 512 << 20  # of leaves that are written at a time, while the next are read
TOKENIZER_BYTES = 64 << 20  # of a file, above which only its size is compared
SMALL = 1 << 20  # bytes of a file: of the parameters, all but the arrays themselves


def write_params(
    folder: Path,
    params: Parameters,
    dtypes: Mapping[str, np.dtype],
    stacked: set[str],
    on_bytes: Callable[[int], object] = lambda count: None,
) -> None:
    """Write an orbax tree of parameters, each in its dtype; `stacked` are the paths whose first axis counts layers. A
    few leaves are in memory at a time. `on_bytes` gets the bytes of each group that was written.

    Raises:
        OSError: orbax could not write.
    """
    leaves = {
        name: (path, layer, math.prod(shape if layer is None else shape[1:]) * dtypes[path].itemsize)
        for path, shape in params.shapes().items()
        for layer in (range(shape[0]) if path in stacked else (None,))
        for name in [path if layer is None else f"{path}.{layer}"]
    }

    def read(name: str) -> np.ndarray:
        path, layer, _ = leaves[name]
        if layer is None:
            return params.read(path, dtypes[path])
        return params.read(path, dtypes[path], (slice(layer, layer + 1),))[0]

    def write(group: dict[str, np.ndarray]) -> None:
        with _orbax() as ocp, _written(folder):
            ocp.partial.save(folder.resolve(), unflatten_dict(group, sep="."))
        on_bytes(sum(array.nbytes for array in group.values()))

    with ThreadPoolExecutor(1) as pool:  # after an error, too, it ends when nothing is written any more
        writing: Future[None] = pool.submit(lambda: None)
        for names in groups({name: nbytes for name, (_, _, nbytes) in leaves.items()}, GROUP_BYTES):
            group = {name: read(name) for name in names}
            writing.result()
            writing = pool.submit(write, group)
        writing.result()
    with _orbax() as ocp, _written(folder):
        ocp.partial.finalize(folder.resolve())


def open_params(folder: Path, module: nnx.Module) -> DequantizedParams:
    """The parameters of the Flax checkpoint in `folder`, compared with those of an abstract module.

    Raises:
        FileNotFoundError: the parameters are missing.
        CheckpointError: some are missing, left over or misshapen, or they or the tokenizer's files are damaged.
    """
    stored = DequantizedParams(StoredParams(folder / PARAMS), folder)
    faults = []
    if (folder / MANIFEST).is_file():
        faults += verify_manifest(folder, within=TOKENIZER_FILES, limit=TOKENIZER_BYTES)
    faults += shape_faults(stored.shapes(), shapes_of(module), "parameter")
    if faults:
        raise CheckpointError(folder, faults)
    return stored


class StoredParams:
    """The parameters in the orbax folder of a Flax checkpoint, of format 3 or 2. Any part of them can be read.

    Raises:
        FileNotFoundError, CheckpointError: the folder is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"no weights in {folder.parent}: looked for {folder.name}/")
        if (folder.parent / MANIFEST).is_file():
            # Damage is found here first: if several reads fail, orbax leaves some running, which complain on stderr.
            faults = verify_manifest(folder.parent, within=f"{folder.name}/", limit=SMALL)
            if faults:
                raise CheckpointError(folder.parent, faults)
        self._folder = folder.resolve()
        with self._orbax("") as ocp:
            tree = ocp.metadata(self._folder).metadata
        if not isinstance(tree, dict):  # orbax logs the reason
            raise self._damaged("", "orbax cannot read the metadata of its arrays")
        self._leaves = flatten_dict(tree, sep=".")
        self._names: dict[str, list[str]] = {}  # of each parameter, the leaf, or those of its layers
        for name in self._leaves:
            path, _, layer = name.rpartition(".")
            self._names.setdefault(path if layer.isdecimal() else name, []).append(name)
        for path, names in self._names.items():
            if names != [path]:
                self._names[path] = [f"{path}.{layer}" for layer in range(len(names))]
        self._layer: tuple[Any, dict[str, np.ndarray]] = (None, {})  # a layer and a dtype, and the leaves there

    def shapes(self) -> dict[str, Shape]:
        """The shape of every parameter, by its dotted path."""
        return {
            path: (*((len(names),) if names != [path] else ()), *self._leaves[names[0]].shape)
            for path, names in self._names.items()
        }

    def dtypes(self) -> dict[str, np.dtype]:
        """The dtype of every parameter, by its dotted path."""
        return {path: np.dtype(self._leaves[names[0]].dtype) for path, names in self._names.items()}

    def read(self, path: str, dtype: np.dtype, index: Index = ()) -> np.ndarray:
        """The part `index` of a parameter, cast to `dtype`. With a layer of a stacked parameter, those of all others
        are read: they are asked for next."""
        names = self._names[path]
        if names == [path]:
            return self._load({path: np.empty(0, dtype)})[path][index]
        layer, *rest = index or (slice(None),)
        if isinstance(layer, slice):
            return np.stack([self.read(path, dtype, (i, *rest)) for i in range(len(names))[layer]])
        if self._layer[0] != (layer, dtype):
            together = [names[layer] for path, names in self._names.items() if names != [path] and layer < len(names)]
            self._layer = (layer, dtype), self._load(dict.fromkeys(together, np.empty(0, dtype)))
        return self._layer[1][names[layer]][tuple(rest)]

    def restore(self, dtype: np.dtype, shardings: Mapping[str, NamedSharding]) -> Iterator[tuple[str, jax.Array]]:
        """The parameters, cast to `dtype`, by their dotted paths. Each device reads its part."""
        shapes = self.shapes()
        sizes = {path: math.prod(shapes[path]) * dtype.itemsize for path in shardings}
        for paths in groups(sizes, GROUP_BYTES):
            abstract: dict[str, jax.ShapeDtypeStruct] = {}
            for path in paths:
                shape, sharding, names = shapes[path], shardings[path], self._names[path]
                if names != [path]:
                    shape, sharding = shape[1:], NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
                abstract |= dict.fromkeys(names, jax.ShapeDtypeStruct(shape, dtype, sharding=sharding))
            leaves = self._load(abstract)
            for path in paths:
                if path in leaves:
                    yield path, leaves.pop(path)
                    continue
                put = jax.jit(_put_layer, donate_argnums=0, out_shardings=shardings[path])
                stack = jnp.zeros(shapes[path], dtype, device=shardings[path])
                for layer, name in enumerate(self._names[path]):
                    stack = put(stack, leaves.pop(name), layer)
                yield path, stack

    def _load(self, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """Leaves by their names, as arrays of the kind and dtype of the abstract ones."""
        try:
            with self._orbax(f"parameter {next(iter(abstract))} in ") as ocp:
                return flatten_dict(ocp.load(self._folder, unflatten_dict(abstract, sep=".")), sep=".")
        except CheckpointError:
            for name in abstract if len(abstract) > 1 else ():  # which of them it is
                self._load({name: abstract[name]})
            raise

    @contextmanager
    def _orbax(self, what: str) -> Iterator[Any]:
        try:
            with _orbax() as ocp:
                yield ocp
        except Exception as error:
            # For what it cannot read, orbax raises Exception itself.
            if type(error) is Exception or isinstance(error, ValueError | OSError | RecursionError):
                raise self._damaged(what, str(error.__cause__ or error)[:600]) from error
            raise

    def _damaged(self, what: str, reason: str) -> CheckpointError:
        return CheckpointError(self._folder.parent, [f"{what}{self._folder.name}/ is damaged ({reason})"])


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
    """A ValueError of orbax, which it raises if the disk refuses a write, becomes an OSError."""
    try:
        yield
    except ValueError as error:
        raise OSError(errno.EIO, f"orbax could not write ({str(error)[:600]})", str(folder)) from error


@contextmanager
def _orbax() -> Iterator[Any]:
    """Orbax, with options for writing and reading."""
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
    return max([CHUNK_BYTES, *(size // axis * _largest_prime(axis) for axis in shape)])


def _largest_prime(number: int) -> int:
    factor = 2
    while factor * factor <= number:
        if number % factor:
            factor += 1
        else:
            number //= factor
    return number
