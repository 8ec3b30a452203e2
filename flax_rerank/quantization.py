"""Weights in 8 bits: whole numbers from -127 to 127, and a float32 scale for each channel.

The kernel of a layer has a scale for each output, the table of word embeddings one for each row. The scale of the
parameter `a.kernel` is `a.kernel_scale`. All other parameters stay as they are.
"""

from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from flax_rerank.dtypes import DTYPES, INT8
from flax_rerank.params import (
    CheckpointError,
    Index,
    Parameters,
    Shape,
    StoredParameters,
    largest_dtype,
    parameters_of,
)

FLOAT32 = DTYPES["float32"]
LARGEST = 127
SCALE = "_scale"
AXES = {"kernel": -2, "embedding": -1}  # the axis that a channel runs along, by the last part of a parameter's path


def quantized_in(module: nnx.Module) -> list[str]:
    """The paths of the parameters of a module that are quantized."""
    first = {path: param.get_metadata("axes")[0] for path, param in parameters_of(module).items()}
    wanted = {"kernel": "layers", "embedding": "vocab"}
    return [path for path, axis in first.items() if axis is not None and axis == wanted.get(_last(path))]


def is_scale(path: str) -> bool:
    """Whether a parameter holds the scales of another one."""
    return _last(path).removesuffix(SCALE) in AXES and path.endswith(SCALE)


def quantize(path: str, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers, int8, and the scales, float32, whose products are nearest to a parameter or to a part of it with
    whole channels. The largest number of each channel is 127 or -127.

    Raises:
        ValueError: a weight is not finite.
    """
    weights, axis = weights.astype(FLOAT32, copy=False), AXES[_last(path)]
    largest = np.maximum(weights.max(axis), -weights.min(axis))
    if not np.isfinite(largest).all():
        raise ValueError(f"parameter {path} has weights that are not finite: it cannot be quantized")
    scales = largest / np.float32(LARGEST)
    scales[scales == 0] = 1  # a channel of zeros
    numbers = np.rint(weights / np.expand_dims(scales, axis))
    return np.clip(numbers, -LARGEST, LARGEST).astype(INT8), scales


def rounded(path: str, weights: np.ndarray) -> np.ndarray:
    """What is left of a parameter, or of a part with whole channels, when it was quantized: float32."""
    numbers, scales = quantize(path, weights)
    return numbers.astype(FLOAT32) * np.expand_dims(scales, AXES[_last(path)])


class QuantizedParams:
    """Parameters of a module, and the scales of those that are quantized as they are read."""

    def __init__(self, params: Parameters, module: nnx.Module) -> None:
        self._params = params
        self._scale_of = {path + SCALE: path for path in quantized_in(module)}
        self._scales: dict[tuple[str, str], np.ndarray] = {}  # of what was read, until they are

    def shapes(self) -> dict[str, Shape]:
        shapes = dict(self._params.shapes())
        return shapes | {scale: _without(shapes[path], path) for scale, path in self._scale_of.items()}

    def dtypes(self) -> dict[str, np.dtype]:
        stored = dict.fromkeys(self._params.shapes(), largest_dtype(self._params))
        return stored | dict.fromkeys(self._scale_of.values(), INT8) | dict.fromkeys(self._scale_of, FLOAT32)

    def read(self, path: str, dtype: np.dtype, index: Index = ()) -> np.ndarray:
        """The part `index`, of some layers or of all, in the dtype of the parameter."""
        key = str(index)
        if path in self._scale_of:
            if (path, key) not in self._scales:
                self.read(self._scale_of[path], INT8, index)
            return self._scales.pop((path, key))
        if path + SCALE not in self._scale_of:
            return self._params.read(path, dtype, index)
        numbers, scales = quantize(path, self._params.read(path, FLOAT32, index))
        self._scales[path + SCALE, key] = scales
        return numbers


class DequantizedParams:
    """Parameters in a checkpoint, those in 8 bits multiplied with their scales as they are read.

    Raises:
        CheckpointError: a scale is missing, left over, or of another shape or dtype than it must have; or, when it is
            read, not a positive number.
    """

    def __init__(self, stored: StoredParameters, source: object) -> None:
        self._stored, self._source = stored, source
        shapes, dtypes = stored.shapes(), stored.dtypes()
        self._shapes = {path: shape for path, shape in shapes.items() if not is_scale(path)}
        self.quantized = [path for path in self._shapes if dtypes[path] == INT8]
        faults = [
            f"parameter {path} is int8, which it cannot be" for path in self.quantized if _last(path) not in AXES
        ]
        scales = {path + SCALE: path for path in self.quantized if _last(path) in AXES}
        faults += [f"parameter {path} is left over" for path in shapes if is_scale(path) and path not in scales]
        for scale, path in scales.items():
            wanted = _without(shapes[path], path)
            if scale not in shapes:
                faults.append(f"parameter {scale} is missing: {path} is int8")
            elif (shapes[scale], dtypes[scale]) != (wanted, FLOAT32):
                found = f"{list(shapes[scale])} {dtypes[scale].name}"
                faults.append(f"parameter {scale} is {found}, for {path} it must be {list(wanted)} float32")
        if faults:
            raise CheckpointError(source, faults)

    def shapes(self) -> dict[str, Shape]:
        """The shape of every parameter, by its dotted path."""
        return self._shapes

    def dtypes(self) -> dict[str, np.dtype]:
        """The dtype of every parameter, by its dotted path: float32 of those that were quantized."""
        dtypes = self._stored.dtypes()
        return {path: FLOAT32 if path in self.quantized else dtypes[path] for path in self._shapes}

    def read(self, path: str, dtype: np.dtype, index: Index = ()) -> np.ndarray:
        """The part `index` of a parameter, a slice or a number for each of the first axes, cast to `dtype`."""
        if path not in self.quantized:
            return self._stored.read(path, dtype, index)
        whole = [*index, *[slice(None)] * (len(self._shapes[path]) - len(index))]
        numbers = self._stored.read(path, FLOAT32, tuple(whole))
        axis = AXES[_last(path)]
        del whole[axis]
        return (numbers * np.expand_dims(self._read_scale(path, tuple(whole)), axis)).astype(dtype, copy=False)

    def restore(self, dtype: np.dtype, shardings: Mapping[str, NamedSharding]) -> Iterator[tuple[str, jax.Array]]:
        """The parameters, cast to `dtype`, by their dotted paths. Each device reads its part."""
        for path, array in self._stored.restore(dtype, shardings):  # int8 is exact in bfloat16
            if path in self.quantized:
                scale = np.expand_dims(self._read_scale(path), AXES[_last(path)])
                array = jax.jit(_scaled, donate_argnums=0, out_shardings=shardings[path])(array, scale)
            yield path, array

    def _read_scale(self, path: str, index: Index = ()) -> np.ndarray:
        scale = self._stored.read(path + SCALE, FLOAT32, index)
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise CheckpointError(self._source, [f"parameter {path + SCALE} has values that are not positive numbers"])
        return scale


def _scaled(array: jax.Array, scale: jax.Array) -> jax.Array:
    return (array.astype(jnp.float32) * scale).astype(array.dtype)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _without(shape: Shape, path: str) -> Shape:
    """The shape of a parameter's scales."""
    sizes = list(shape)
    del sizes[AXES[_last(path)]]
    return tuple(sizes)
