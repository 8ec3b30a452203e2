"""Write a Flax checkpoint."""

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from flax_rerank.checkpoint.folder import FORMAT, FORMAT_VERSION, KEPT, PARAMS, new_folder, sync
from flax_rerank.checkpoint.manifest import MANIFEST, file_hashes, files_in
from flax_rerank.checkpoint.params import write_params
from flax_rerank.convert.rules import TensorSource
from flax_rerank.convert.torch_files import SafetensorsFiles, write_safetensors
from flax_rerank.params import ModuleParameters, Parameters, parameters_of, stacked_in
from flax_rerank.tokenizer import Tokenizer

ROOM = 64 << 20  # on the disk, for what is beside the arrays
PART_BYTES = 64 << 20  # of a kept tensor that are in memory at a time


@dataclass(frozen=True)
class Contents:
    """What a Flax checkpoint holds.

    Attributes:
        model_class: a `RerankerModelClass` value.
        module: the module, abstract or not.
        params: its parameters.
        dtype: that they are written in.
        tokenizer: its files are copied.
        scoring: arguments of the reranker's class, which `FlaxAutoReranker.from_finetuned` gives to it.
        source_config: the config.json that the model was converted from.
        kept: tensors of the source that are kept as they are, by their PyTorch names, and where they are read.
    """

    model_class: str
    module: nnx.Module
    params: Parameters
    dtype: np.dtype
    tokenizer: Tokenizer
    scoring: Mapping[str, Any]
    source_config: Mapping[str, Any]
    kept: Mapping[str, TensorSource] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        kept = (
            math.prod(source.shapes()[name]) * source.dtypes()[name].itemsize for name, source in self.kept.items()
        )
        return sum(map(math.prod, self.params.shapes().values())) * self.dtype.itemsize + sum(kept)


def save(
    path: Path,
    model: nnx.Module,
    tokenizer: Tokenizer,
    *,
    model_class: str,
    scoring: Mapping[str, Any],
    source_config: Mapping[str, Any],
    source: Mapping[str, Any] | None,
    kept: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write the Flax checkpoint of a model in memory. The folder appears when it is complete, never before.

    Args:
        path: the folder to make.
        model: any module of `flax_rerank.models`.
        model_class, tokenizer, scoring, source_config: as in `Contents`.
        source: what the manifest is to say about where the model came from, if that is known.
        kept: the file of kept tensors of the Flax checkpoint that the model came from, if it has one. It may lie in
            the folder that is replaced.
        overwrite: replace a Flax checkpoint that is there.

    Raises:
        As `write`; ValueError: other processes have parts of the model; CheckpointError: `kept` is damaged.
    """
    for name, param in parameters_of(model).items():
        if not param.get_value().is_fully_addressable:
            raise ValueError(f"other processes have parts of {name}: convert the source instead of saving the model")
    params = ModuleParameters(model)
    files = None if kept is None else SafetensorsFiles(kept.parent, [kept.name])
    contents = Contents(
        model_class,
        model,
        params,
        next(iter(params.dtypes().values())),
        tokenizer,
        scoring,
        source_config,
        kept={} if files is None else dict.fromkeys(files.shapes(), files),
    )
    write(path, contents, lambda: source, overwrite=overwrite)


def write(
    path: Path,
    contents: Contents,
    source: Callable[[], Mapping[str, Any] | None],
    *,
    overwrite: bool = False,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> None:
    """Write a Flax checkpoint part by part. The folder appears when it is complete, never before.

    Args:
        path: the folder to make.
        contents: of the folder.
        source: gives what the manifest is to say about the source, when the arrays are written.
        overwrite: replace a Flax checkpoint that is there.
        on_bytes: is told how many bytes of arrays were written, and of files read for their sha256.

    Raises:
        FileExistsError: the folder is there and may not be replaced.
        OSError: the disk is full, or the folder cannot be written to.
    """
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model_class": contents.model_class,
        "architecture": type(contents.module).__name__,
        "architecture_config": dataclasses.asdict(contents.module.config),
        "scoring": dict(contents.scoring),
        "source_config": dict(contents.source_config),
    }
    with new_folder(path, overwrite=overwrite, needed_bytes=contents.nbytes + ROOM) as folder:
        for file in contents.tokenizer.files:
            shutil.copyfile(file, folder / file.name)
        write_params(folder / PARAMS, contents.params, contents.dtype, stacked_in(contents.module), on_bytes)
        if contents.kept:
            tensors = {name: (files.dtypes()[name], files.shapes()[name]) for name, files in contents.kept.items()}
            write_safetensors(folder / KEPT, tensors, _parts(contents.kept, on_bytes))
        text = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
        hashes = file_hashes(files_in(folder), on_bytes)
        files = {file.relative_to(folder).as_posix(): digest for file, digest in hashes.items()}
        sizes = {name: (folder / name).stat().st_size for name in files}
        manifest = {
            "source": source(),
            "dtype": contents.dtype.name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "converter": f"flax-rerank {_version()}",
            "files": files | {"config.json": hashlib.sha256(text).hexdigest()},
            "sizes": sizes | {"config.json": len(text)},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for entry in (*folder.rglob("*"), folder):
            sync(entry)
        # config.json comes last: without it a folder is no checkpoint.
        (folder / "config.json").write_bytes(text)
        sync(folder / "config.json")


def _parts(kept: Mapping[str, TensorSource], on_bytes: Callable[[int], None]) -> Iterator[np.ndarray]:
    for name, source in kept.items():
        shape, dtype = source.shapes()[name], source.dtypes()[name]
        rows = max(1, PART_BYTES // (math.prod(shape[1:]) * dtype.itemsize))
        for start in range(0, shape[0], rows):
            # With an adapter merged into it, it comes in float32.
            part = source.read(name, (slice(start, start + rows),)).astype(dtype, copy=False)
            yield part
            on_bytes(part.nbytes)


def _version() -> str:
    from flax_rerank import __version__

    return __version__
