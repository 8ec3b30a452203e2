"""A Flax model back to a Hugging Face folder: config.json, safetensors, tokenizer."""

import json
import logging
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from flax import nnx
from tqdm import tqdm

from flax_rerank import checkpoint
from flax_rerank.checkpoint.folder import sync
from flax_rerank.checkpoint.params import StoredParams
from flax_rerank.convert.load import FLOAT32, family_of, parameters_of, read_config
from flax_rerank.convert.rules import CheckpointError, Row, Rule, Shape, assign
from flax_rerank.convert.torch_files import FLOATS, INDEX, SINGLE, SafetensorsFiles, write_safetensors
from flax_rerank.models.readout import Readout
from flax_rerank.text.tokenizer import FILES as TOKENIZER_FILES
from flax_rerank.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

MAX_SHARD_SIZE = 5 * 10**9
WEIGHT_FILE = r"model(-\d{5}-of-\d{5})?\.safetensors"
DTYPES = {FLOATS[kind].name: FLOATS[kind] for kind in ("F32", "BF16", "F16")}


class Parameters(Protocol):
    """Parameters by their dotted paths, read part by part; `StoredParams` are such."""

    def shapes(self) -> Mapping[str, Shape]:
        """The shape of every parameter."""
        ...

    def dtypes(self) -> Mapping[str, np.dtype]:
        """The dtype of every parameter."""
        ...

    def read(self, path: str, dtype: np.dtype, index: tuple[Any, ...]) -> np.ndarray:
        """The part `index` of one parameter, in `dtype`."""
        ...


class ModelParameters:
    """The parameters of a module. Only the part that is read comes to the host."""

    def __init__(self, model: nnx.Module) -> None:
        self._arrays = {path: param.get_value() for path, param in parameters_of(model).items()}

    def shapes(self) -> Mapping[str, Shape]:
        return {path: array.shape for path, array in self._arrays.items()}

    def dtypes(self) -> Mapping[str, np.dtype]:
        return {path: np.dtype(array.dtype) for path, array in self._arrays.items()}

    def read(self, path: str, dtype: np.dtype, index: tuple[Any, ...]) -> np.ndarray:
        return np.asarray(self._arrays[path][index]).astype(dtype, copy=False)


@dataclass(frozen=True)
class Tensor:
    """A tensor of the PyTorch checkpoint: the rule and the slice that it fills, its shape, the parameter's dtype."""

    rule: Rule
    index: int | None
    shape: Shape
    dtype: np.dtype


class TorchTensors:
    """The tensors that a model has, by their PyTorch names and as PyTorch has them.

    Args:
        params: the model's parameters.
        model_config: the module's config.
        source_config: the Hugging Face config.json that the model was converted from.
        folder: where matrices of which the model has one row were kept, if they were.

    Raises:
        ValueError: the parameters are not those of the config, or a matrix was not kept; all reasons at once.
        CheckpointError: what was kept cannot be read.
        NotImplementedError: a source config that is not covered.
    """

    def __init__(
        self,
        params: Parameters,
        architecture: tuple[Any, Readout],
        source_config: Mapping[str, Any],
        folder: Path | None,
    ) -> None:
        family = family_of(source_config)
        rules = family.rules(*architecture, source_config)
        shapes, dtypes = params.shapes(), params.dtypes()
        module = nnx.eval_shape(lambda: family.module(*architecture, FLOAT32))
        wanted = {path: param.get_value().shape for path, param in parameters_of(module).items()}
        self._params = params
        self._tensors = {
            rule.torch_name(index): Tensor(rule, index, rule.tensor_shape(shape), dtypes[rule.flax])
            for rule in rules
            for shape in [shapes.get(rule.flax)]
            if shape is not None
            for index in (range(shape[0]) if rule.stacked else (None,))
        }
        self._kept = None
        if folder is not None and (folder / checkpoint.KEPT).is_file():
            self._kept = SafetensorsFiles(folder, [checkpoint.KEPT])
        _, faults = assign({name: tensor.shape for name, tensor in self._tensors.items()}, wanted, rules)
        faults += [f"parameter {path} {list(shapes[path])} is left over" for path in shapes if path not in wanted]
        faults += self._faults_of_heads()
        if faults:
            raise ValueError("it cannot be given back to PyTorch:\n" + "\n".join(f"  - {fault}" for fault in faults))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the parameter's dtype."""
        tensor = self._tensors[name]
        rule = tensor.rule
        array = self._params.read(rule.flax, tensor.dtype, rule.region(tensor.index))
        if not _is_one_row(rule):
            return rule.transform.to_torch(array)
        matrix = self._kept.read(name).astype(tensor.dtype)
        matrix[np.asarray(rule.transform.row)] = array
        return matrix

    def _faults_of_heads(self) -> list[str]:
        kept = {} if self._kept is None else self._kept.shapes()
        rows = {name: tensor.shape for name, tensor in self._tensors.items() if _is_one_row(tensor.rule)}
        faults = [
            f"{name} in {checkpoint.KEPT} has shape {list(kept[name])}, the config asks for {list(shape)}"
            for name, shape in rows.items()
            if kept.get(name, shape) != shape
        ]
        lost = [name for name in rows if name not in kept]
        if lost:
            others = f" and of {len(lost) - 1} more like it" if len(lost) > 1 else ""
            faults.append(
                f"the model has only one row of {lost[0]} {list(rows[lost[0]])}{others}: convert the source with "
                "--keep-head, which keeps the others"
            )
        return faults


def _is_one_row(rule: Rule) -> bool:
    """Whether the model has one row of a matrix with several."""
    return isinstance(rule.transform, Row) and rule.transform.rows != 1


def export_checkpoint(
    source: Path,
    out: Path,
    *,
    dtype: str | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    overwrite: bool = False,
    show_progress_bar: bool = False,
) -> np.dtype:
    """Write the Hugging Face folder of a Flax checkpoint; arguments and result are those of `export`.

    Raises:
        FileNotFoundError: `source` has no config.json, parameters or tokenizer.
        ValueError: `source` is no Flax checkpoint, or one of the folders lies in the other; and as `TorchTensors`.
        CheckpointError: a newer format, damaged parameters.
        And as `export`.
    """
    config = read_config(source)
    if not checkpoint.is_flax_config(config):
        raise ValueError(f"{source} is no Flax checkpoint: its config.json does not say that it is one")
    checkpoint.require_known_format(source, config)
    here, there = source.resolve(), out.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise ValueError(f"of {source} and {out} one lies in the other: write to a folder of its own")
    params = StoredParams(source / checkpoint.PARAMS)
    hf = config["source_config"]
    return export(
        out,
        TorchTensors(params, read_model_config(source, config), hf, source),
        hf,
        Tokenizer.from_folder(source).files,
        dtype=dtype,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
        show_progress_bar=show_progress_bar,
    )


def read_model_config(folder: Path, config: Mapping[str, Any]) -> Any:
    """The config of the module in a Flax checkpoint whose config.json is `config`.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    try:
        _, config_class = checkpoint.ARCHITECTURES[config["architecture"]]
        return config_class(**config["architecture_config"]), Readout(**config["readout"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(folder, [f"config.json does not describe a model ({error!r})"]) from error


def export(
    out: Path,
    tensors: TorchTensors,
    source_config: Mapping[str, Any],
    tokenizer_files: Iterable[Path],
    *,
    dtype: str | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    overwrite: bool = False,
    show_progress_bar: bool = False,
) -> np.dtype:
    """Write a folder that transformers and FlagEmbedding load. It appears when it is complete, never before.

    One tensor at a time is in memory. config.json is that of the source, but for the dtype.

    Args:
        out: the folder to make.
        tensors: the tensors.
        source_config: the Hugging Face config.json that the model was converted from.
        tokenizer_files: are copied.
        dtype: of the tensors: "float32", "bfloat16" or "float16". By default that which config.json names, if it
            is smaller than the model's and holds every value exactly; else the model's own.
        max_shard_size: bytes of a file at most, where no single tensor is larger.
        overwrite: replace a folder that is there, if it holds nothing but what an export writes.
        show_progress_bar: of the bytes.

    Returns:
        The dtype that was written.

    Raises:
        FileExistsError: the folder is there and may not be replaced.
        ValueError: an unknown dtype, or one that cannot hold a value.
        OSError: the disk is full, or a file cannot be written.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    own = max((tensors[name].dtype for name in tensors), key=lambda dtype: dtype.itemsize)
    named = DTYPES.get(str(source_config.get("dtype") or source_config.get("torch_dtype")), own)
    chosen = DTYPES[dtype] if dtype else named if named.itemsize < own.itemsize else own
    while True:
        size = sum(math.prod(tensors[name].shape) for name in tensors) * chosen.itemsize
        try:
            with (
                checkpoint.new_folder(out, overwrite=overwrite, needed_bytes=size, refuse=refuse_existing) as folder,
                tqdm(total=size, unit="B", unit_scale=True, desc=out.name, disable=not show_progress_bar) as bar,
            ):
                _write(folder, tensors, chosen, max_shard_size, exactly=dtype is None, on_bytes=bar.update)
                for file in tokenizer_files:
                    shutil.copyfile(file, folder / file.name)
                config = dict(source_config)
                for field in {"dtype", "torch_dtype"} & config.keys() or {"torch_dtype"}:
                    config[field] = chosen.name
                _write_json(folder / "config.json", config)
                for entry in (*folder.iterdir(), folder):
                    sync(entry)
            return chosen
        except InexactError as error:
            logger.info("%s, which config.json names; writing %s", error, own.name)
            chosen = own


class InexactError(ValueError):
    """A value is another one in the dtype that config.json names."""


def _write(
    folder: Path,
    tensors: TorchTensors,
    dtype: np.dtype,
    max_shard_size: int,
    *,
    exactly: bool,
    on_bytes: Callable[[int], object],
) -> None:
    """Write the weights."""
    sizes = {name: math.prod(tensors[name].shape) * dtype.itemsize for name in sorted(tensors, key=_with_numbers)}
    shards = list(_shards(sizes, max_shard_size))
    weight_map: dict[str, str] = {}

    def arrays(names: Sequence[str]) -> Iterator[np.ndarray]:
        for name in names:
            yield _cast(name, tensors.read(name), dtype, exactly)
            on_bytes(sizes[name])

    for number, shard in enumerate(shards, start=1):
        path = folder / (f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else SINGLE)
        names = sorted(shard)  # as the safetensors library does it: what came from one file of its own is that again
        write_safetensors(path, {name: (dtype, tensors[name].shape) for name in names}, arrays(names))
        weight_map |= dict.fromkeys(names, path.name)
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})


def _with_numbers(name: str) -> list[str]:
    """Sorts layer 2 before layer 10."""
    return [part.zfill(9) if part.isdecimal() else part for part in name.split(".")]


def _shards(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Names in their order, in groups of at most `limit` bytes where no single one has more."""
    group: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if group and filled + size > limit:
            yield group
            group, filled = [], 0
        group.append(name)
        filled += size
    yield group


def _cast(name: str, array: np.ndarray, dtype: np.dtype, exactly: bool) -> np.ndarray:
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if exactly and not np.array_equal(cast.astype(array.dtype), array, equal_nan=True):
        raise InexactError(f"{name} is not exact in {dtype.name}")
    if not np.array_equal(np.isfinite(cast), np.isfinite(array)):
        raise ValueError(f"{name} has values beyond {dtype.name}: choose another dtype")
    return cast


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Raise FileExistsError if `out` is there and may not be replaced: only an empty folder may be, or with
    `overwrite` one that holds nothing but what an export writes."""
    if not out.exists():
        return
    if not out.is_dir():
        raise FileExistsError(f"{out} is a file")
    names = sorted(path.name for path in out.iterdir())
    if names and not overwrite:
        raise FileExistsError(f"{out} exists; pass overwrite (--overwrite) to replace it")
    written = {"config.json", INDEX, *TOKENIZER_FILES}
    foreign = [name for name in names if name not in written and not re.fullmatch(WEIGHT_FILE, name)]
    if foreign:
        raise FileExistsError(f"{out} holds {foreign[0]}, which no export writes, so it is not overwritten")
