"""Inputs: files of pairs, or a TREC run with its texts, cut into shards."""

import os
from collections.abc import Sequence

from flax_rerank.jobs import files
from flax_rerank.jobs.sources.jsonl import JsonlSource
from flax_rerank.jobs.sources.parquet import ParquetSource
from flax_rerank.jobs.sources.records import LIMITS, Limits
from flax_rerank.jobs.sources.texts import beir_files
from flax_rerank.jobs.sources.trec import TrecSource

__all__ = ["JsonlSource", "Limits", "ParquetSource", "Source", "TrecSource", "beir_files", "open_source"]

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")

Source = JsonlSource | ParquetSource | TrecSource


def open_source(
    paths: Sequence[str], *, query_field: str = "query", passage_field: str = "passage", limits: Limits = LIMITS
) -> JsonlSource | ParquetSource:
    """The source for files of pairs, by their suffix: JSON lines (.gz, .zst or neither) or Parquet.

    Raises ValueError for no files, other files or files of two formats, and IsADirectoryError for a folder.
    """
    if not paths:
        raise ValueError("no input files")
    kinds = {_kind(path): path for path in paths}
    if len(kinds) > 1:
        raise ValueError(f"{' and '.join(kinds.values())} have different formats; score them in two jobs")
    (kind,) = kinds
    return kind(list(paths), query_field, passage_field, limits)


def _kind(path: str) -> type[JsonlSource | ParquetSource]:
    if path.endswith(".parquet"):
        return ParquetSource
    if path.removesuffix(files.compression_of(path)).endswith(JSONL_SUFFIXES):
        return JsonlSource
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a directory, not a file")
    raise ValueError(f"{path}: inputs are {', '.join(JSONL_SUFFIXES)} (also .gz, .zst) or .parquet files")
