"""The weight files of a PyTorch checkpoint folder: read lazily, and written tensor by tensor."""

import itertools
import json
import logging
import math
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from flax_rerank.convert.rules import TensorSource
from flax_rerank.params import CheckpointError, Index, Shape, groups

logger = logging.getLogger(__name__)

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_SIZE = 5 * 10**9
FLOATS: Mapping[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


def open_torch_files(folder: Path) -> TensorSource:
    """Open the weights in `folder`: safetensors if there are any, else pytorch_model.bin.

    Raises:
        FileNotFoundError, CheckpointError: files are missing or corrupt.
        ImportError: there is only a pickle, and no torch to read it safely.
    """
    if (folder / SINGLE).is_file():
        return SafetensorsFiles(folder, [SINGLE])
    if (folder / INDEX).is_file():
        return SafetensorsFiles.from_index(folder / INDEX)
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    if pickles:
        return PickleFiles(folder, pickles)
    raise FileNotFoundError(f"no weights in {folder}: looked for {SINGLE}, {INDEX} and pytorch_model.bin")


def names_in_safetensors(folder: Path) -> Iterable[str] | None:
    """The names of the tensors in `folder`; None where it has no safetensors.

    Raises:
        CheckpointError: a file is missing or corrupt.
    """
    has_files = (folder / SINGLE).is_file() or (folder / INDEX).is_file()
    return open_torch_files(folder).shapes() if has_files else None


class _Entry(NamedTuple):
    """Where a tensor is."""

    file: Path
    offset: int
    dtype: np.dtype
    shape: Shape


class SafetensorsFiles:
    """Tensors of one safetensors file, or of the shards that an index lists."""

    def __init__(self, folder: Path, files: list[str], weight_map: Mapping[str, str] | None = None) -> None:
        self.files: tuple[Path, ...] = tuple(folder / file for file in files)
        self._entries: dict[str, _Entry] = {}
        faults = []
        found: dict[str, set[str]] = {}  # the tensors in each file that can be read
        for file in files:
            try:
                with safe_open(folder / file, framework="numpy"):  # it checks the header against the file
                    start, header = _header(folder / file)
            except FileNotFoundError:
                faults.append(f"{file} is missing")
                continue
            except SafetensorError as error:
                faults.append(f"{file} is truncated or corrupt ({error})")
                continue
            found[file] = set(header)
            for name, entry in header.items():
                kind = entry["dtype"]
                if name in self._entries:
                    faults.append(f"tensor {name} is in two files")
                if kind not in FLOATS and not name.endswith("position_ids"):
                    faults.append(
                        f"tensor {name} in {file} has dtype {kind}; float32, float16 and bfloat16 can be read"
                    )
                self._entries[name] = _Entry(
                    folder / file,
                    start + entry["data_offsets"][0],
                    FLOATS.get(kind, np.dtype(np.int64)),
                    tuple(entry["shape"]),
                )
        faults += [
            f"tensor {name} is not in {file}, where the index has it"
            for name, file in (weight_map or {}).items()
            if file in found and name not in found[file]
        ]
        if faults:
            raise CheckpointError(folder, faults)

    @classmethod
    def from_index(cls, path: Path) -> "SafetensorsFiles":
        try:
            weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
                raise TypeError("weight_map does not map tensors to files")
            for file in map(PurePath, weight_map.values()):
                if not file.parts or file.is_absolute() or ".." in file.parts:
                    raise ValueError(f"weight_map names {str(file)!r}, which is not a file in the folder")
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(path.parent, [f"{path.name} is not an index of tensors ({error!r})"]) from error
        source = cls(path.parent, sorted(set(weight_map.values())), weight_map)
        source.files = (path, *source.files)
        return source

    def shapes(self) -> Mapping[str, Shape]:
        return {name: entry.shape for name, entry in self._entries.items()}

    def dtypes(self) -> Mapping[str, np.dtype]:
        return {name: entry.dtype for name, entry in self._entries.items()}

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        # A map of its own for each read: its pages leave the process with the array.
        entry = self._entries[name]
        if 0 in entry.shape:
            return np.empty(entry.shape, entry.dtype)[index]
        return np.asarray(np.memmap(entry.file, entry.dtype, "r", entry.offset, entry.shape)[index])


def _header(file: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Where the numbers of a safetensors file begin, and the dtype, shape and place of each tensor."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    return 8 + size, header


def write_safetensors(path: Path, tensors: Mapping[str, tuple[np.dtype, Shape]], parts: Iterable[np.ndarray]) -> None:
    """Write a safetensors file: the dtype and shape of each tensor, then their numbers in C order, cut anywhere into
    `parts`, of which one at a time is in memory.
    """
    names = {dtype: name for name, dtype in FLOATS.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts:
            file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)


def write_torch_files(
    folder: Path,
    shapes: Mapping[str, Shape],
    dtype: np.dtype,
    parts: Callable[[str], Iterable[np.ndarray]],
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """Write model.safetensors, or shards of at most `max_shard_size` bytes (or one tensor) and their index.

    `parts` gives the numbers of a tensor in C order, cut anywhere.
    """
    by_layer = sorted(shapes, key=_with_numbers)
    shards = list(groups({name: math.prod(shapes[name]) * dtype.itemsize for name in by_layer}, max_shard_size))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else SINGLE
        names = sorted(shard)  # as the safetensors library does it: what came from one file of its own is that again
        tensors = {name: (dtype, shapes[name]) for name in names}
        write_safetensors(folder / file, tensors, itertools.chain.from_iterable(map(parts, names)))
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(map(math.prod, shapes.values())) * dtype.itemsize
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _with_numbers(name: str) -> list[str]:
    """Sorts layer 2 before layer 10."""
    return [part.zfill(9) if part.isdecimal() else part for part in name.split(".")]


def write_json(path: Path, value: Mapping[str, Any] | str) -> None:
    """Write a JSON file as Hugging Face does, in UTF-8; a text as it is."""
    if isinstance(value, str):
        path.write_text(value, encoding="utf-8")
        return
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class JoinedFiles:
    """The tensors of several sources, named by a prefix for each."""

    def __init__(self, sources: Mapping[str, TensorSource]) -> None:
        self.files: tuple[Path, ...] = tuple(file for source in sources.values() for file in source.files)
        self._shapes: dict[str, Shape] = {}
        self._dtypes: dict[str, np.dtype] = {}
        self._sources: dict[str, tuple[TensorSource, str]] = {}
        for prefix, source in sources.items():
            self._shapes |= {prefix + name: shape for name, shape in source.shapes().items()}
            self._dtypes |= {prefix + name: dtype for name, dtype in source.dtypes().items()}
            self._sources |= {prefix + name: (source, name) for name in source.shapes()}

    def shapes(self) -> Mapping[str, Shape]:
        return self._shapes

    def dtypes(self) -> Mapping[str, np.dtype]:
        return self._dtypes

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        source, own = self._sources[name]
        return source.read(own, index)


@dataclass(frozen=True)
class RenamedFiles:
    """Tensors of a source under other names; `names` has the source's name of each."""

    source: TensorSource
    names: Mapping[str, str]

    @property
    def files(self) -> tuple[Path, ...]:
        return self.source.files

    def shapes(self) -> Mapping[str, Shape]:
        shapes = self.source.shapes()
        return {name: shapes[stored] for name, stored in self.names.items()}

    def dtypes(self) -> Mapping[str, np.dtype]:
        dtypes = self.source.dtypes()
        return {name: dtypes[stored] for name, stored in self.names.items()}

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        return self.source.read(self.names[name], index)


class PickleFiles:
    """Tensors of pytorch_model.bin, read by torch's weights_only loader: no code in the pickle runs."""

    def __init__(self, folder: Path, files: list[Path]) -> None:
        try:
            import torch
        except ImportError as error:
            raise ImportError(
                f"{folder} has its weights only as a pickle ({files[0].name}), which only torch reads safely: "
                "pip install 'flax-rerank[torch]', or save it once as safetensors: "
                "AutoModel...from_pretrained(folder).save_pretrained(out, safe_serialization=True)"
            ) from error
        logger.info("reading %s with torch's weights_only loader", folder)
        self.files = tuple(files)
        self._tensors: dict[str, Any] = {}
        for file in files:
            try:
                # Files of torch before 1.6 are not archives and cannot be mapped: these are read whole.
                mapped = zipfile.is_zipfile(file)
                self._tensors |= torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
            except (pickle.UnpicklingError, RuntimeError, TypeError, KeyError, EOFError) as error:
                reason = str(error).partition("\n")[0]
                raise CheckpointError(
                    folder, [f"{file.name} is not a plain dictionary of tensors ({reason})"]
                ) from error
        self._torch = torch

    def shapes(self) -> Mapping[str, Shape]:
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def dtypes(self) -> Mapping[str, np.dtype]:
        return {name: self.read(name).dtype for name in self._tensors}

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        tensor = self._tensors[name]
        if tensor.dtype == self._torch.bfloat16:
            return tensor.view(self._torch.int16).numpy().view(ml_dtypes.bfloat16)[index]
        return tensor.numpy()[index]
