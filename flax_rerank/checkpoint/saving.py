"""Write a Flax checkpoint."""

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

from flax_rerank.checkpoint.folder import FORMAT, FORMAT_VERSION, KEPT, PARAMS, new_folder, sync
from flax_rerank.checkpoint.manifest import MANIFEST, file_hashes, files_in
from flax_rerank.checkpoint.params import write_params
from flax_rerank.convert.rules import TensorSource
from flax_rerank.convert.torch_files import write_safetensors
from flax_rerank.params import Parameters
from flax_rerank.text.tokenizer import Tokenizer

ROOM = 64 << 20  # on the disk, for what is beside the arrays
PART_BYTES = 64 << 20  # of a kept tensor that are in memory at a time


@dataclass(frozen=True)
class Contents:
    """What a Flax checkpoint holds.

    Attributes:
        model_class: a `RerankerModelClass` value.
        params: the model's parameters.
        dtype: that they are written in.
        stacked: the paths of those whose first axis counts layers.
        tokenizer: its files are copied.
        scoring: settings of the reranker, which count where the user gives none.
        source_config: the config.json that the model was converted from.
        head_tokens: the tokens of a vocabulary-sized head whose rows the model has; empty for other heads.
        kept: tensors of the source that are kept as they are, by their PyTorch names, and where they are read.
    """

    model_class: str
    params: Parameters
    dtype: np.dtype
    stacked: set[str]
    tokenizer: Tokenizer
    scoring: Mapping[str, Any]
    source_config: Mapping[str, Any]
    head_tokens: tuple[int, ...] = ()
    kept: Mapping[str, TensorSource] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        kept = (
            math.prod(source.shapes()[name]) * source.dtypes()[name].itemsize for name, source in self.kept.items()
        )
        return sum(map(math.prod, self.params.shapes().values())) * self.dtype.itemsize + sum(kept)


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
        "head_tokens": list(contents.head_tokens),
        "scoring": dict(contents.scoring),
        "source_config": dict(contents.source_config),
    }
    with new_folder(path, overwrite=overwrite, needed_bytes=contents.nbytes + ROOM) as folder:
        for file in contents.tokenizer.files:
            shutil.copyfile(file, folder / file.name)
        write_params(folder / PARAMS, contents.params, contents.dtype, contents.stacked, on_bytes)
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
