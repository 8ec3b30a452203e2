"""Write a Hugging Face folder: config.json, safetensors, tokenizer."""

import logging
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from flax_rerank import checkpoint
from flax_rerank.checkpoint.folder import refuse_foreign, sync
from flax_rerank.convert import family_of
from flax_rerank.convert.rules import Assignment, Row, assignments
from flax_rerank.convert.sentence_transformers import FILES, config_files, read_files
from flax_rerank.convert.torch_files import (
    FLOATS,
    INDEX,
    MAX_SHARD_SIZE,
    SafetensorsFiles,
    write_json,
    write_torch_files,
)
from flax_rerank.dtypes import FLOAT32
from flax_rerank.params import ArrayParameters, Parameters, Shape, largest_dtype, shape_faults, shapes_of
from flax_rerank.spec import Spec
from flax_rerank.text.tokenizer import FILES as TOKENIZER_FILES

logger = logging.getLogger(__name__)

WEIGHT_FILE = r"model(-\d{5}-of-\d{5})?\.safetensors"
DTYPES = {FLOATS[kind].name: FLOATS[kind] for kind in ("F32", "BF16", "F16")}


class InexactError(ValueError):
    """A value changes in the dtype that config.json names."""


class TorchTensors:
    """The tensors of a model as PyTorch has them, by their PyTorch names. Matrices of which the model has one or two
    rows are completed from what its Flax checkpoint kept.

    Raises:
        ValueError: the parameters are not those of the spec, or a matrix was not kept; all reasons at once.
        CheckpointError: the kept tensors cannot be read.
    """

    def __init__(self, params: Parameters, spec: Spec) -> None:
        shapes = shapes_of(spec.module(FLOAT32))
        items = assignments(spec.family.rules(spec.config, spec.readout, spec.hf), shapes)
        self._params, self._dtypes = params, params.dtypes()
        # The parts of a tensor are in order.
        self._items: dict[str, list[Assignment]] = {}
        for item in items:
            self._items.setdefault(item.tensor, []).append(item)
        self._kept = None if spec.kept is None else SafetensorsFiles(spec.kept.parent, [spec.kept.name])
        faults = shape_faults(params.shapes(), shapes, "parameter") + self._faults_of_heads()
        if faults:
            raise ValueError("it cannot be written for PyTorch:\n" + "\n".join(f"  - {fault}" for fault in faults))

    def shapes(self) -> Mapping[str, Shape]:
        """The shape of every tensor."""
        return {name: items[0].shape for name, items in self._items.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the parameter's dtype."""
        items = self._items[name]
        item = items[0]
        dtype = self._dtypes[item.path]
        arrays = [self._params.read(item.path, dtype, item.region) for item in items]
        if not item.partly_used:
            parts = [item.transform.to_torch(array) for item, array in zip(items, arrays, strict=True)]
            return parts[0] if len(parts) == 1 else np.concatenate(parts)
        (array,) = arrays
        assert self._kept is not None  # else the constructor raised
        assert isinstance(item.transform, Row)
        matrix = self._kept.read(name).astype(dtype)
        row = item.transform.row
        matrix[list(row) if isinstance(row, tuple) else row] = array
        return matrix

    def _faults_of_heads(self) -> list[str]:
        kept = {} if self._kept is None else self._kept.shapes()
        matrices = {name: items[0].shape for name, items in self._items.items() if items[0].partly_used}
        lost = [name for name in matrices if name not in kept]
        if not lost:
            return shape_faults(kept, matrices, "kept tensor")
        others = f" and of {len(lost) - 1} more" if len(lost) > 1 else ""
        return [
            f"the model has only one row of {lost[0]} {list(matrices[lost[0]])}{others}: convert the source with "
            "--keep-head, which keeps the others"
        ]


def save_pretrained(path: Path, spec: Spec, params: Mapping[str, jax.Array], *, overwrite: bool = False) -> None:
    """Write the Hugging Face folder of a model in memory; see `export`."""
    export(path, spec, ArrayParameters(params), overwrite=overwrite)


def export(
    out: Path,
    spec: Spec,
    params: Parameters,
    *,
    dtype: str | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    overwrite: bool = False,
    show_progress_bar: bool = False,
) -> np.dtype:
    """Write a folder that transformers and FlagEmbedding load. It appears when it is complete, never before. One
    tensor at a time is in memory.

    Args:
        dtype: of the tensors: "float32", "bfloat16" or "float16". By default the dtype that config.json names, if it
            is smaller than the model's and holds every value exactly; else the model's own.
        max_shard_size: bytes of a file at most, if no single tensor is larger.
        overwrite: replace an existing folder, if it holds nothing but what an export writes.

    Returns:
        The dtype that was written.

    Raises:
        FileExistsError: the folder exists and may not be replaced.
        ValueError: an unknown dtype, or one that cannot hold a value; and as `TorchTensors`.
        OSError: the disk is full, or a file cannot be written.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    tensors = TorchTensors(params, spec)
    shapes, own = tensors.shapes(), largest_dtype(params)
    named = DTYPES.get(str(spec.hf.get("dtype") or spec.hf.get("torch_dtype")), own)

    def write(chosen: np.dtype) -> np.dtype:
        size = sum(map(math.prod, shapes.values())) * chosen.itemsize
        with (
            checkpoint.new_folder(out, overwrite=overwrite, needed_bytes=size, refuse=refuse_existing) as folder,
            tqdm(total=size, unit="B", unit_scale=True, desc=out.name, disable=not show_progress_bar) as bar,
        ):

            def parts(name: str) -> Iterator[np.ndarray]:
                yield _cast(name, tensors.read(name), chosen, exactly=dtype is None)
                bar.update(math.prod(shapes[name]) * chosen.itemsize)

            for part, names in _by_folder(shapes).items():
                (folder / part).mkdir(exist_ok=True)
                within = {name.removeprefix(f"{part}/"): shapes[name] for name in names}
                read = partial(_parts_within, parts, part)
                write_torch_files(folder / part, within, chosen, read, max_shard_size)
            for file in spec.tokenizer.files:
                shutil.copyfile(file, folder / file.name)
            fields = {"dtype", "torch_dtype"} & spec.hf.keys() or {"torch_dtype"}
            for name, value in config_files({**spec.hf, **dict.fromkeys(fields, chosen.name)}).items():
                (folder / name).parent.mkdir(exist_ok=True)
                write_json(folder / name, value)
            for entry in (*folder.rglob("*"), folder):
                sync(entry)
        return chosen

    if dtype is not None:
        return write(DTYPES[dtype])
    try:
        return write(min(own, named, key=lambda each: each.itemsize))
    except InexactError as error:
        logger.info("%s, which config.json names; writing %s", error, own.name)
        return write(own)


def _by_folder(names: Iterable[str]) -> dict[str, list[str]]:
    """The names of tensors by the folder that each begins with; empty for the checkpoint's own."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.rpartition("/")[0], []).append(name)
    return found


def _parts_within(parts: Callable[[str], Iterator[np.ndarray]], folder: str, name: str) -> Iterator[np.ndarray]:
    return parts(f"{folder}/{name}" if folder else name)


def _cast(name: str, array: np.ndarray, dtype: np.dtype, *, exactly: bool) -> np.ndarray:
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if exactly and not np.array_equal(cast.astype(array.dtype), array, equal_nan=True):
        raise InexactError(f"{name} is not exact in {dtype.name}")
    if not np.array_equal(np.isfinite(cast), np.isfinite(array)):
        raise ValueError(f"{name} has values beyond {dtype.name}: choose another dtype")
    return cast


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Raise FileExistsError if `out` exists and may not be replaced: only an empty folder may be, or with `overwrite`
    one of a model that is covered here, which holds nothing but what an export writes."""
    if not out.exists():
        return
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise FileExistsError(f"{out} exists; pass overwrite (--overwrite) to replace it")
    files = read_files(out) if out.is_dir() else {}
    paths = {file.relative_to(out) for file in exported_files(out)}
    entries = {path.parts[0] for path in paths}
    folders = {path.parts[0] for path in paths if len(path.parts) > 1}
    refuse_foreign(out, "an exported model", lambda config: _is_covered({**config, FILES: files}), entries, folders)


def exported_files(folder: Path) -> list[Path]:
    """The files of a Hugging Face folder that an export writes: configs, tokenizer, and weights beside a config."""
    configs = {folder / name for name in config_files({FILES: read_files(folder)})} if folder.is_dir() else set()
    known = configs | {folder / name for name in TOKENIZER_FILES}
    known |= {file.parent / INDEX for file in configs}
    parents = {file.parent for file in configs}
    weights = {
        file
        for parent in parents
        for file in parent.glob("model*.safetensors")
        if re.fullmatch(WEIGHT_FILE, file.name)
    }
    return sorted(file for file in known | weights if file.is_file())


def _is_covered(config: Mapping[str, Any]) -> bool:
    try:
        family_of(config)
    except (ValueError, NotImplementedError):
        return False
    return True
