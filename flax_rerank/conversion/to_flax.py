"""A PyTorch checkpoint to a Flax checkpoint, part by part: the model is never in memory."""

import itertools
import logging
import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flax_rerank import checkpoint
from flax_rerank.auto import class_of, find_spec
from flax_rerank.checkpoint.manifest import describe_source, sha256
from flax_rerank.convert import TorchCheckpoint, peft, sentence_transformers
from flax_rerank.convert.rules import TensorSource
from flax_rerank.dtypes import FLOAT32, stored_dtype
from flax_rerank.params import largest_dtype
from flax_rerank.rerankers.call import resolve
from flax_rerank.saving.flax_checkpoint import write
from flax_rerank.settings import RerankerModelClass
from flax_rerank.spec import Spec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversion:
    """What was converted: the source, and what was written in which dtype; `bytes` of all arrays."""

    spec: Spec
    reranker: str
    parameters: int
    dtype: np.dtype
    bytes: int
    seconds: float


def convert(
    source: str,
    out: Path,
    *,
    model_class: str | RerankerModelClass | None = None,
    dtype: str | None = None,
    keep_head: bool = False,
    overwrite: bool = False,
    show_progress_bar: bool = False,
    **settings: Any,
) -> Conversion:
    """Convert a PyTorch checkpoint. The folder appears when it is complete, never before; the source is only read.

    Args:
        source: a folder, or a name on the Hugging Face hub.
        out: the folder to make.
        model_class: as for `FlaxAutoReranker.from_finetuned`.
        dtype: "float32", "bfloat16" or "int8", see `flax_rerank.quantization`; by default as stored, and float32 for
            float16, of which bfloat16 would lose bits.
        keep_head: keep an untied head whole, of which the model has a row or two: else there is no way back to
            PyTorch.
        overwrite: replace an existing Flax checkpoint.
        settings: of the reranker. The checkpoint keeps those of the model.

    Raises:
        FileExistsError: `out` exists and may not be replaced.
        OSError: the disk is full, or `out` cannot be written to.
        ValueError: `source` is a Flax checkpoint, or one of the two lies in the other.
        And as `FlaxAutoReranker.from_finetuned`.
    """
    started = time.perf_counter()
    refuse_nesting(source, out)
    checkpoint.refuse_existing(out, overwrite)
    asked = None if dtype is None else stored_dtype(dtype)
    spec = find_spec(source, model_class, **settings)
    resolve(spec, spec.settings)
    module = spec.module(FLOAT32)
    opened = spec.weights(module)
    if not isinstance(opened, TorchCheckpoint):
        raise ValueError(f"{spec.folder} is a Flax checkpoint already")
    chosen = asked or largest_dtype(opened)
    kept = _partly_used(opened, source) if keep_head else {}
    folder = spec.folder
    assert folder is not None  # else there were no weights
    pool = ThreadPoolExecutor(1)
    # The source is hashed while it is read and written.
    configs = [folder / name for name in sentence_transformers.config_files(spec.hf)]
    files = (*configs, *opened.source.files, *spec.tokenizer.files)
    described = partial(_described, spec, folder, {file: pool.submit(sha256, file) for file in files})
    options = {"overwrite": overwrite, "show_progress_bar": show_progress_bar}
    try:
        size = write(out, spec, module, opened, chosen, kept, described, **options)
    finally:
        pool.shutdown(cancel_futures=True)
    return Conversion(
        spec=spec,
        reranker=class_of(spec).__name__,
        parameters=sum(map(math.prod, opened.shapes().values())),
        dtype=chosen,
        bytes=size,
        seconds=time.perf_counter() - started,
    )


def refuse_nesting(source: str | Path, out: Path) -> None:
    """Raise ValueError if one of the two folders lies in the other."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return
    if folder.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"{out} holds the source {source}, which writing would remove")
    if out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{out} lies in the source {source}, which is not written to")


def _partly_used(opened: TorchCheckpoint, name: str) -> dict[str, TensorSource]:
    items = itertools.chain(*opened.assignments.values())
    tensors = [item.tensor for item in items if item.partly_used]
    if not tensors:
        logger.warning("the model uses all of the head of %s: there is nothing to keep", name)
    return dict.fromkeys(tensors, opened.source)


def _described(spec: Spec, folder: Path, hashes: dict[Path, Future[str]]) -> dict[str, Any]:
    """The manifest's entry for the source and its adapter, with the sha256 of the files that were read."""

    digests = {
        file.name if file.parent == spec.adapter else file.relative_to(folder).as_posix(): future.result()
        for file, future in hashes.items()
    }
    of_adapter = {name: digests.pop(name) for name in (peft.CONFIG, peft.WEIGHTS) if name in digests}
    source = describe_source(spec.name, folder, digests)
    if spec.adapter is not None:
        source["adapter"] = describe_source(str(spec.adapter), spec.adapter, of_adapter)
    return source
