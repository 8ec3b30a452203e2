"""Training data: files of examples to batches of fixed shapes."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from flax_rerank.jobs.files import absolute, compression_of, is_url, sizes
from flax_rerank.spec import Spec
from flax_rerank.training.data.batches import BatchInfo, TrainingData
from flax_rerank.training.data.examples import DataError
from flax_rerank.training.data.rows import FileRows, MemoryRows
from flax_rerank.training.data.settings import DataSettings
from flax_rerank.training.data.sources import RowSource, Source
from flax_rerank.training.data.tokens import Encoder
from flax_rerank.training.data.trec import TrecSource

__all__ = ["BatchInfo", "DataError", "DataSettings", "TrainingData", "open_data"]

SUFFIXES = (".jsonl", ".json")


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
        paths: files of JSON lines (.gz, .zst or neither), folders of such files, or the rows themselves, of one of the
            forms in `examples.FORMS`; or folders with a TREC run, see `trec.TrecSource`.
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
    # In an order that does not depend on the command.
    names = sorted(os.fspath(path) for path in paths if not isinstance(path, Mapping))
    if len({absolute(name) for name in names}) < len(names):
        raise ValueError(f"{', '.join(names)}: one of them is given twice; num_train_epochs says how often it is seen")
    sources = [source for name in names for source in _open(name, settings)]
    if rows:
        sources.append(RowSource(MemoryRows(rows)))
    if not sources:
        raise ValueError("there is no training data: give files of examples, or a folder with a TREC run")
    return TrainingData(
        sources, Encoder(spec, settings), settings, groups_per_micro=groups_per_micro, max_steps=max_steps, loss=loss
    )


def _open(name: str, settings: DataSettings) -> list[Source]:
    """The sources of a file or a folder."""
    if is_url(name) or not os.path.isdir(name):
        return [RowSource(FileRows(name))]
    if os.path.isdir(f"{name}/qrels"):
        return [TrecSource(name, settings.run_top_k)]
    found = [file for file in sizes(name) if file.removesuffix(compression_of(file)).endswith(SUFFIXES)]
    if not found:
        raise FileNotFoundError(f"{name} has no {' or '.join(SUFFIXES)} files, nor qrels and a run")
    return [RowSource(FileRows(f"{name}/{file}")) for file in found]
