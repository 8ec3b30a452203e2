"""Write a Flax checkpoint, part by part."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

import flax_rerank
from flax_rerank import checkpoint
from flax_rerank.checkpoint.folder import FORMAT, FORMAT_VERSION, KEPT, PARAMS, sync
from flax_rerank.checkpoint.manifest import MANIFEST, describe_source, file_hashes, files_in, read_manifest
from flax_rerank.checkpoint.params import write_params
from flax_rerank.convert.rules import TensorSource
from flax_rerank.convert.torch_files import SafetensorsFiles, write_safetensors
from flax_rerank.dtypes import INT8
from flax_rerank.params import ArrayParameters, Parameters, largest_dtype, stacked_in
from flax_rerank.quantization import SCALE, QuantizedParams
from flax_rerank.settings import Settings
from flax_rerank.spec import Spec

ROOM = 64 << 20  # on the disk, for what is beside the arrays
PART_BYTES = 64 << 20  # of a kept tensor that are in memory at a time


def save(
    path: Path,
    spec: Spec,
    settings: Settings,
    module: nnx.Module,
    params: Mapping[str, jax.Array],
    *,
    dtype: np.dtype | None = None,
    overwrite: bool = False,
) -> None:
    """Write the Flax checkpoint of a model in memory, with those `settings` that belong to the model, in the model's
    dtype or in that of `STORED` which is given. The folder appears when it is complete, never before; with
    `overwrite`, it replaces a Flax checkpoint.

    Raises:
        FileExistsError: the folder exists and may not be replaced.
        OSError: the disk is full, or the folder cannot be written to.
        ValueError: other processes have parts of the model.
    """
    for name, array in params.items():
        if not array.is_fully_addressable:
            raise ValueError(f"other processes have parts of {name}: convert the source instead of saving the model")
    kept: dict[str, TensorSource] = {}
    if spec.kept is not None:
        source = SafetensorsFiles(spec.kept.parent, [spec.kept.name])
        kept = dict.fromkeys(source.shapes(), source)
    arrays = ArrayParameters(params)
    spec = replace(spec, settings=settings)
    write(path, spec, module, arrays, dtype or largest_dtype(arrays), kept, lambda: _source(spec), overwrite=overwrite)


def write(
    path: Path,
    spec: Spec,
    module: nnx.Module,
    params: Parameters,
    dtype: np.dtype,
    kept: Mapping[str, TensorSource],
    source: Callable[[], Mapping[str, Any] | None],
    *,
    overwrite: bool = False,
    show_progress_bar: bool = False,
) -> int:
    """Write a Flax checkpoint part by part, as `save`; the bytes of all arrays.

    Args:
        dtype: of the parameters that are written; of int8, those that are not quantized stay as they are.
        kept: tensors of the source to keep as they are, by their PyTorch names, and where each is read.
        source: gives the manifest's entry for the source, when the arrays are written.
        show_progress_bar: of the bytes written and hashed.
    """
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model_class": spec.model_class.value,
        "head_tokens": list(spec.readout.tokens) if spec.readout.head == "linear" else [],
        "scoring": spec.settings.kept(),
        "source_config": dict(spec.hf),
    }
    tensors = {name: (files.dtypes()[name], files.shapes()[name]) for name, files in kept.items()}
    dtypes, stacked = dict.fromkeys(params.shapes(), dtype), stacked_in(module)
    if dtype == INT8:
        params = QuantizedParams(params, module)
        dtypes, stacked = params.dtypes(), stacked | {path + SCALE for path in stacked}
    size = sum(math.prod(shape) * dtypes[path].itemsize for path, shape in params.shapes().items())
    size += sum(math.prod(shape) * stored.itemsize for stored, shape in tensors.values())
    with (
        checkpoint.new_folder(path, overwrite=overwrite, needed_bytes=size + ROOM) as folder,
        tqdm(total=2 * size, unit="B", unit_scale=True, desc=path.name, disable=not show_progress_bar) as bar,
    ):

        def on_bytes(count: int) -> None:
            bar.update(min(count, bar.total - bar.n))  # what is beside the arrays is hashed too, but little

        for file in spec.tokenizer.files:
            shutil.copyfile(file, folder / file.name)
        write_params(folder / PARAMS, params, dtypes, stacked, on_bytes)
        if kept:
            write_safetensors(folder / KEPT, tensors, _parts(kept, on_bytes))
        text = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
        files = files_in(folder)
        hashes = file_hashes(files.values(), on_bytes)
        manifest = {
            "source": source(),
            "dtype": dtype.name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "converter": f"flax-rerank {flax_rerank.__version__}",
            "files": {name: hashes[file] for name, file in files.items()}
            | {"config.json": hashlib.sha256(text).hexdigest()},
            "sizes": {name: file.stat().st_size for name, file in files.items()} | {"config.json": len(text)},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for entry in (*folder.rglob("*"), folder):
            sync(entry)
        # config.json comes last: a folder without it is not a checkpoint.
        (folder / "config.json").write_bytes(text)
        sync(folder / "config.json")
    return size


def _parts(kept: Mapping[str, TensorSource], on_bytes: Callable[[int], None]) -> Iterator[np.ndarray]:
    for name, source in kept.items():
        shape, dtype = source.shapes()[name], source.dtypes()[name]
        rows = max(1, PART_BYTES // (math.prod(shape[1:]) * dtype.itemsize))
        for start in range(0, shape[0], rows):
            # With an adapter merged into it, it comes in float32.
            part = source.read(name, (slice(start, start + rows),)).astype(dtype, copy=False)
            yield part
            on_bytes(part.nbytes)


def _source(spec: Spec) -> Mapping[str, Any] | None:
    """The manifest's entry for the source of a loaded model."""
    if spec.folder is None:
        return None
    if not spec.is_flax:
        return describe_source(spec.name, spec.folder)
    return read_manifest(spec.folder)["source"] if (spec.folder / MANIFEST).is_file() else None
