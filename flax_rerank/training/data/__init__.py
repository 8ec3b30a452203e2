"""Training data: files of examples to batches of fixed shapes."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from flax_rerank.spec import Spec
from flax_rerank.training.data.batches import BatchInfo, TrainingData
from flax_rerank.training.data.examples import DataError
from flax_rerank.training.data.settings import TREC_FILES, DataSettings
from flax_rerank.training.data.sources import FileRows, MemoryRows, RowSource, Source
from flax_rerank.training.data.tokens import Encoder
from flax_rerank.training.data.trec import TrecSource

__all__ = ["BatchInfo", "DataError", "DataSettings", "TrainingData", "open_data"]


def open_data(
    paths: Sequence[str | os.PathLike[str]] | Sequence[Mapping[str, Any]],
    spec: Spec,
    settings: DataSettings,
    *,
    groups_per_micro: int,
    max_steps: int | None = None,
    loss: str = "cross_entropy",
) -> TrainingData:
    """Open the data of a training, and check all of it.

    Args:
        paths: files of JSON lines (.gz, .zst or neither), or the rows themselves; of one of the forms in
            `examples.FORMS`. A TREC run is given by `settings`, besides or instead.
        spec: the model that is trained.
        settings: of the data.
        groups_per_micro: queries in a micro batch, on all devices together.
        max_steps: of the run, instead of `num_train_epochs`.
        loss: an entry of `losses.LOSSES`, which says what the examples must have.

    Raises:
        DataError: an example at fault, named by file and line.
        ValueError: no data, or lengths that the model or the prompt do not allow.
        OSError: a file that cannot be read.
    """
    rows = [path for path in paths if isinstance(path, Mapping)]
    files = [os.fspath(path) for path in paths if not isinstance(path, Mapping)]
    twice = {file for file in files if files.count(file) > 1}
    if twice:
        raise ValueError(f"{', '.join(sorted(twice))}: given twice; set num_train_epochs to see data more often")
    sources: list[Source] = [RowSource(FileRows(file)) for file in files]
    if rows:
        sources.append(RowSource(MemoryRows(rows)))
    if settings.train_run is not None:
        run, qrels, queries, corpus = (getattr(settings, name) for name in TREC_FILES)
        sources.append(TrecSource(run, qrels, queries, corpus, settings.train_top_k))
    if not sources:
        raise ValueError("there is no training data: give files of examples, or a TREC run")
    return TrainingData(
        sources, Encoder(spec, settings), settings, groups_per_micro=groups_per_micro, max_steps=max_steps, loss=loss
    )
