"""A Flax model back to a Hugging Face folder: config.json, safetensors, tokenizer."""

import json
import logging
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flax_rerank import checkpoint
from flax_rerank.checkpoint.folder import sync
from flax_rerank.convert.rules import Assignment, Row
from flax_rerank.convert.torch_files import FLOATS, INDEX, SINGLE, SafetensorsFiles, write_safetensors
from flax_rerank.dtypes import FLOAT32
from flax_rerank.params import Parameters, Shape, groups, shape_faults, shapes_of
from flax_rerank.spec import Spec, open_spec
from flax_rerank.text.tokenizer import FILES as TOKENIZER_FILES

logger = logging.getLogger(__name__)

MAX_SHARD_SIZE = 5 * 10**9
WEIGHT_FILE = r"model(-\d{5}-of-\d{5})?\.safetensors"
DTYPES = {FLOATS[kind].name: FLOATS[kind] for kind in ("F32", "BF16", "F16")}


class TorchTensors:
    """The tensors that a model has, by their PyTorch names and as PyTorch has them.

    Args:
        params: the model's parameters.
        spec: of the model. Where it is a Flax checkpoint that kept matrices of which the model has one row, these are
            read there.

    Raises:
        ValueError: the parameters are not those of the module, or a matrix was not kept; all reasons at once.
        CheckpointError: what was kept cannot be read.
        NotImplementedError: a source config that is not covered.
    """

    def __init__(self, params: Parameters, spec: Spec) -> None:
        shapes = shapes_of(spec.module(FLOAT32))
        rules = spec.family.rules(spec.config, spec.readout, spec.hf)
        self._params = params
        self._dtypes = params.dtypes()
        items = (item for rule in rules if rule.flax in shapes for item in rule.assignments(shapes[rule.flax]))
        self._items = {item.tensor: item for item in items}
        self._shapes = {name: item.rule.tensor_shape(shapes[item.rule.flax]) for name, item in self._items.items()}
        self._kept = None
        if spec.kept is not None:
            self._kept = SafetensorsFiles(spec.kept.parent, [spec.kept.name])
        faults = shape_faults(params.shapes(), shapes, "parameter") + self._faults_of_heads()
        if faults:
            raise ValueError("it cannot be given back to PyTorch:\n" + "\n".join(f"  - {fault}" for fault in faults))

    def shapes(self) -> Mapping[str, Shape]:
        """The shape of every tensor."""
        return self._shapes

    def dtype(self) -> np.dtype:
        """The largest dtype of a parameter."""
        return max(self._dtypes.values(), key=lambda dtype: dtype.itemsize)

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the parameter's dtype."""
        item = self._items[name]
        dtype = self._dtypes[item.rule.flax]
        array = self._params.read(item.rule.flax, dtype, item.region)
        if not _is_one_row(item):
            return item.rule.transform.to_torch(array)
        assert self._kept is not None  # else `_faults_of_heads` has raised
        matrix = self._kept.read(name).astype(dtype)
        matrix[item.rule.transform.row] = array
        return matrix

    def _faults_of_heads(self) -> list[str]:
        kept = {} if self._kept is None else self._kept.shapes()
        rows = {name: self._shapes[name] for name, item in self._items.items() if _is_one_row(item)}
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


def _is_one_row(item: Assignment) -> bool:
    """Whether the model has one row of a matrix with several."""
    return isinstance(item.rule.transform, Row) and item.rule.transform.rows != 1


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
    spec = open_spec(str(source))
    if not spec.is_flax:
        raise ValueError(f"{source} is not a Flax checkpoint: its config.json does not say that it is one")
    here, there = source.resolve(), out.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise ValueError(f"of {source} and {out} one lies in the other: write to a folder of its own")
    params = spec.weights(spec.module(FLOAT32))
    return export(
        out,
        TorchTensors(params, spec),
        spec,
        dtype=dtype,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
        show_progress_bar=show_progress_bar,
    )


def export(
    out: Path,
    tensors: TorchTensors,
    spec: Spec,
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
        spec: has the Hugging Face config.json and the tokenizer's files, which are copied.
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
    own = tensors.dtype()
    named = DTYPES.get(str(spec.hf.get("dtype") or spec.hf.get("torch_dtype")), own)
    chosen = DTYPES[dtype] if dtype else named if named.itemsize < own.itemsize else own
    while True:
        size = sum(map(math.prod, tensors.shapes().values())) * chosen.itemsize
        try:
            with (
                checkpoint.new_folder(out, overwrite=overwrite, needed_bytes=size, refuse=refuse_existing) as folder,
                tqdm(total=size, unit="B", unit_scale=True, desc=out.name, disable=not show_progress_bar) as bar,
            ):
                _write(folder, tensors, chosen, max_shard_size, exactly=dtype is None, on_bytes=bar.update)
                for file in spec.tokenizer.files:
                    shutil.copyfile(file, folder / file.name)
                config = dict(spec.hf)
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
    shapes = tensors.shapes()
    sizes = {name: math.prod(shapes[name]) * dtype.itemsize for name in sorted(shapes, key=_with_numbers)}
    shards = list(groups(sizes, max_shard_size))
    weight_map: dict[str, str] = {}

    def arrays(names: Sequence[str]) -> Iterator[np.ndarray]:
        for name in names:
            yield _cast(name, tensors.read(name), dtype, exactly)
            on_bytes(sizes[name])

    for number, shard in enumerate(shards, start=1):
        path = folder / (f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else SINGLE)
        names = sorted(shard)  # as the safetensors library does it: what came from one file of its own is that again
        write_safetensors(path, {name: (dtype, shapes[name]) for name in names}, arrays(names))
        weight_map |= dict.fromkeys(names, path.name)
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})


def _with_numbers(name: str) -> list[str]:
    """Sorts layer 2 before layer 10."""
    return [part.zfill(9) if part.isdecimal() else part for part in name.split(".")]


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
