"""A PyTorch checkpoint to a Flax checkpoint, part by part: the model is never in memory."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flax_rerank import checkpoint
from flax_rerank.auto import class_of, find_spec
from flax_rerank.convert import TorchCheckpoint
from flax_rerank.convert.rules import TensorSource
from flax_rerank.dtypes import DTYPES, FLOAT32
from flax_rerank.rerankers.call import resolve
from flax_rerank.saving import contents_of
from flax_rerank.settings import RerankerModelClass
from flax_rerank.spec import Spec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        folder: of the source.
        adapter: the folder of the adapter that was merged, if any.
        reranker: the name of its class.
        parameters: how many numbers the model has.
        dtype: that they were written in.
        bytes: that they take.
        seconds: that it took.
    """

    folder: Path
    adapter: Path | None
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
        dtype: "float32" or "bfloat16"; by default as stored, which is float32 for what is stored in float16, since
            bfloat16 would lose bits of it.
        keep_head: keep the matrix of an untied head of which the model has but one row, in a file of its own:
            without it there is no way back to PyTorch.
        overwrite: replace a Flax checkpoint that is there.
        show_progress_bar: of the bytes written and checked.
        settings: of the reranker. Those of the model are kept in the checkpoint.

    Raises:
        FileExistsError: `out` is there and may not be replaced.
        OSError: the disk is full, or `out` cannot be written to.
        ValueError: `source` is a Flax checkpoint, or one of the two lies in the other.
        And as `FlaxAutoReranker.from_finetuned`.
    """
    started = time.perf_counter()
    refuse_nesting(source, out)
    checkpoint.refuse_existing(out, overwrite)
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    spec = find_spec(source, model_class, **settings)
    resolve(spec, spec.settings)
    module = spec.module(FLOAT32)
    opened = spec.weights(module)
    if not isinstance(opened, TorchCheckpoint):
        raise ValueError(f"{spec.folder} is a Flax checkpoint already")
    chosen = DTYPES[dtype] if dtype else opened.dtype()
    contents = contents_of(spec, spec.settings, opened, chosen, module)
    if keep_head:
        contents = replace(contents, kept=_kept(opened))
    stopped = threading.Event()

    def stop(count: int) -> None:
        if stopped.is_set():
            raise InterruptedError

    lock = threading.Lock()
    with (
        tqdm(
            total=2 * contents.nbytes, unit="B", unit_scale=True, desc=out.name, disable=not show_progress_bar
        ) as bar,
        ThreadPoolExecutor(1) as pool,
    ):

        def on_bytes(count: int) -> None:
            with lock:  # what is beside the arrays is checked too, but little
                bar.update(min(count, bar.total - bar.n))

        described = pool.submit(_describe, spec, opened, stop)
        try:
            checkpoint.write(out, contents, described.result, overwrite=overwrite, on_bytes=on_bytes)
        finally:
            stopped.set()
    return Conversion(
        folder=opened.folder,
        adapter=opened.adapter,
        reranker=class_of(spec).__name__,
        parameters=sum(map(math.prod, opened.shapes().values())),
        dtype=chosen,
        bytes=contents.nbytes,
        seconds=time.perf_counter() - started,
    )


def refuse_nesting(source: str, out: Path) -> None:
    """Raise ValueError if one of the two folders lies in the other."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return
    if folder.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"{out} holds the source {source}, which writing would remove")
    if out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{out} lies in the source {source}, which is not written to")


def _kept(opened: TorchCheckpoint) -> dict[str, TensorSource]:
    tensors = opened.partly_used()
    if not tensors:
        logger.warning("%s has no head that would be left out: there is nothing to keep", opened.folder)
    return dict.fromkeys(tensors, opened.source)


def _describe(spec: Spec, opened: TorchCheckpoint, on_bytes: Callable[[int], None]) -> dict[str, Any]:
    """What the manifest says about the source and its adapter: with the sha256 of the files that were read."""

    def described(name: str, folder: Path, files: Iterable[Path]) -> dict[str, Any]:
        hashes = checkpoint.file_hashes(files, on_bytes, threads=1)
        return checkpoint.describe_source(name, folder) | {"files": {file.name: hashes[file] for file in hashes}}

    own = [file for file in opened.source.files if file.parent != opened.adapter]
    result = described(spec.name, opened.folder, (opened.folder / "config.json", *own, *spec.tokenizer.files))
    if opened.adapter is not None:
        others = (file for file in opened.source.files if file.parent == opened.adapter)
        result["adapter"] = described(str(spec.adapter), opened.adapter, others)
    return result
