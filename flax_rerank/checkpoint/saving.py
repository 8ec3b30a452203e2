"""Write a Flax checkpoint."""

import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from flax_rerank.checkpoint.folder import FORMAT, FORMAT_VERSION, KEPT, PARAMS, new_folder, sync
from flax_rerank.checkpoint.manifest import MANIFEST, file_hashes, files_in
from flax_rerank.checkpoint.params import Parameter, write_params
from flax_rerank.convert.load import parameters_of
from flax_rerank.convert.rules import Index
from flax_rerank.convert.torch_files import write_safetensors
from flax_rerank.text.tokenizer import Tokenizer

ROOM = 64 << 20  # on the disk, for what is beside the arrays


@dataclass(frozen=True)
class Contents:
    """What a Flax checkpoint holds.

    Attributes:
        model_class: a `RerankerModelClass` value.
        module: the module, abstract or not.
        params: its parameters, by their dotted paths; all of one dtype.
        tokenizer: its files are copied.
        scoring: arguments of the reranker's class, which `FlaxAutoReranker.from_finetuned` gives to it.
        source_config: the config.json that the model was converted from.
        kept: tensors of the source that are to be kept as they are, by their PyTorch names.
    """

    model_class: str
    module: nnx.Module
    params: Mapping[str, Parameter]
    tokenizer: Tokenizer
    scoring: Mapping[str, Any]
    source_config: Mapping[str, Any]
    kept: Mapping[str, Parameter] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        return sum(param.nbytes for param in itertools.chain(self.params.values(), self.kept.values()))


def save(
    path: Path,
    model: nnx.Module,
    tokenizer: Tokenizer,
    *,
    model_class: str,
    scoring: Mapping[str, Any],
    source_config: Mapping[str, Any],
    source: Mapping[str, Any] | None,
    overwrite: bool = False,
) -> None:
    """Write the Flax checkpoint of a model in memory. The folder appears when it is complete, never before.

    Args:
        path: the folder to make.
        model: any module of `flax_rerank.models`.
        model_class, tokenizer, scoring, source_config: as in `Contents`.
        source: what the manifest is to say about where the model came from, if that is known.
        overwrite: replace a Flax checkpoint that is there.

    Raises:
        As `write`; ValueError: other processes have parts of the model.
    """
    params = {name: _in_memory(name, param.get_value()) for name, param in parameters_of(model).items()}
    contents = Contents(model_class, model, params, tokenizer, scoring, source_config)
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
        "readout": dataclasses.asdict(contents.module.readout),
        "scoring": dict(contents.scoring),
        "source_config": dict(contents.source_config),
    }
    with new_folder(path, overwrite=overwrite, needed_bytes=contents.nbytes + ROOM) as folder:
        for file in contents.tokenizer.files:
            shutil.copyfile(file, folder / file.name)
        write_params(folder / PARAMS, contents.params, on_bytes)
        if contents.kept:
            tensors = {name: (param.dtype, param.shape) for name, param in contents.kept.items()}
            write_safetensors(folder / KEPT, tensors, _parts(contents.kept.values(), on_bytes))
        text = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
        hashes = file_hashes(files_in(folder), on_bytes)
        files = {file.relative_to(folder).as_posix(): digest for file, digest in hashes.items()}
        manifest = {
            "source": source(),
            "dtype": next(iter(contents.params.values())).dtype.name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "converter": f"flax-rerank {_version()}",
            "files": files | {"config.json": hashlib.sha256(text).hexdigest()},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for entry in (*folder.rglob("*"), folder):
            sync(entry)
        # config.json comes last: without it a folder is no checkpoint.
        (folder / "config.json").write_bytes(text)
        sync(folder / "config.json")


def _in_memory(name: str, array: jax.Array) -> Parameter:
    if not array.is_fully_addressable:
        raise ValueError(f"other processes have parts of {name}: convert the source instead of saving the model")

    def parts() -> Iterator[tuple[Index, np.ndarray]]:
        for shard in array.addressable_shards:
            if shard.replica_id == 0:
                yield shard.index, np.asarray(shard.data)

    return Parameter(array.shape, np.dtype(array.dtype), parts)


def _parts(params: Iterable[Parameter], on_bytes: Callable[[int], None]) -> Iterator[np.ndarray]:
    for param in params:
        for _, part in param.parts():
            yield part
            on_bytes(part.nbytes)


def _version() -> str:
    from flax_rerank import __version__

    return __version__
