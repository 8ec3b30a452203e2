"""A PyTorch checkpoint to a Flax checkpoint, part by part: the model is never in memory."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from tqdm import tqdm

from flax_rerank import checkpoint
from flax_rerank.auto import RerankerModelClass, class_of
from flax_rerank.checkpoint import Contents
from flax_rerank.convert import TorchCheckpoint
from flax_rerank.convert.rules import TensorSource
from flax_rerank.dtypes import DTYPES
from flax_rerank.rerankers import AbsReranker
from flax_rerank.rerankers.arguments import scoring_arguments
from flax_rerank.sharding import host_device

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
    **arguments: Any,
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
        arguments: of the reranker's class. Those for scoring are kept in the checkpoint.

    Raises:
        FileExistsError: `out` is there and may not be replaced.
        OSError: the disk is full, or `out` cannot be written to.
        ValueError: `source` is a Flax checkpoint, or one of the two lies in the other.
        And as `FlaxAutoReranker.from_finetuned`.
    """
    started = time.perf_counter()
    refuse_nesting(source, out)
    checkpoint.refuse_existing(out, overwrite)
    reranker, opened = without_weights(source, model_class=model_class, dtype=dtype, **arguments)
    chosen = DTYPES[dtype] if dtype else opened.dtype()
    contents = Contents(
        model_class=reranker.model_class,
        module=opened.module,
        params=opened,
        dtype=chosen,
        tokenizer=reranker.tokenizer,
        scoring=scoring_arguments(reranker),
        source_config=opened.config,
        kept=_kept(opened) if keep_head else {},
    )
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

        described = pool.submit(_describe, source, arguments.get("peft_path"), opened, reranker.tokenizer.files, stop)
        try:
            checkpoint.write(out, contents, described.result, overwrite=overwrite, on_bytes=on_bytes)
        finally:
            stopped.set()
    return Conversion(
        folder=opened.folder,
        adapter=opened.adapter,
        reranker=type(reranker).__name__,
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


def without_weights(
    source: str, *, model_class: str | RerankerModelClass | None = None, **arguments: Any
) -> tuple[AbsReranker, TorchCheckpoint]:
    """A reranker with an abstract model, which cannot score, and the checkpoint that its weights are in.

    All that the constructor checks is checked.

    Raises:
        As `FlaxAutoReranker.from_finetuned`; ValueError: `source` is a Flax checkpoint.
    """
    chosen, _ = class_of(source, model_class, arguments.get("cache_dir"))
    reranker = type(chosen.__name__, (_WithoutWeights, chosen), {})(source, devices=host_device(), **arguments)
    return reranker, reranker.checkpoint


class _WithoutWeights(AbsReranker):
    """Mixed into a reranker's class, keeps it from reading weights."""

    checkpoint: TorchCheckpoint

    def _load_model(self, folder: Path, cache_dir: str | None) -> nnx.Module:
        if checkpoint.is_flax_config(self.source_config):
            raise ValueError(f"{folder} is a Flax checkpoint already")
        self.checkpoint = self._open_torch(folder, cache_dir)
        return self.checkpoint.module


def _kept(opened: TorchCheckpoint) -> dict[str, TensorSource]:
    tensors = opened.partly_used()
    if not tensors:
        logger.warning("%s has no head that would be left out: there is nothing to keep", opened.folder)
    return dict.fromkeys(tensors, opened.source)


def _describe(
    source: str,
    adapter: str | None,
    opened: TorchCheckpoint,
    tokenizer_files: Sequence[Path],
    on_bytes: Callable[[int], None],
) -> dict[str, Any]:
    """What the manifest says about the source and its adapter: with the sha256 of the files that were read."""

    def described(name: str, folder: Path, files: Iterable[Path]) -> dict[str, Any]:
        hashes = checkpoint.file_hashes(files, on_bytes, threads=1)
        return checkpoint.describe_source(name, folder) | {"files": {file.name: hashes[file] for file in hashes}}

    own = [file for file in opened.source.files if file.parent != opened.adapter]
    result = described(source, opened.folder, (opened.folder / "config.json", *own, *tokenizer_files))
    if opened.adapter is not None:
        others = (file for file in opened.source.files if file.parent == opened.adapter)
        result["adapter"] = described(str(adapter), opened.adapter, others)
    return result
