"""Outputs: files of scored rows."""

from typing import TYPE_CHECKING

from flax_rerank.jobs.files import COMPRESSIONS
from flax_rerank.jobs.formats.jsonl import JsonlFormat
from flax_rerank.jobs.formats.parquet import ParquetFormat
from flax_rerank.jobs.formats.trec import TAG, TrecFormat
from flax_rerank.jobs.rows import Format

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["JsonlFormat", "ParquetFormat", "TrecFormat", "format_of"]

SUFFIXES = {".jsonl": "jsonl", ".trec": "trec", ".run": "trec", ".txt": "trec"}


def format_of(path: str, *, schema: "pa.Schema | None" = None, tag: str = TAG) -> Format:
    """The format that the name of a file says: JSON lines (.jsonl) or a TREC run (.trec, .run, .txt), compressed (.gz,
    .zst) or not, or .parquet.

    Args:
        path: the file.
        schema: for Parquet, the schema of the records, where the source has one (`ParquetSource.schema`).
        tag: for a TREC run, its name.

    Raises:
        ValueError: the name has another suffix.
    """
    if path.endswith(".parquet"):
        return ParquetFormat(schema)
    for compression in ("", *COMPRESSIONS):
        for stem, kind in SUFFIXES.items():
            suffix = stem + compression
            if path.endswith(suffix):
                return JsonlFormat(suffix) if kind == "jsonl" else TrecFormat(tag, suffix)
    known = ", ".join(SUFFIXES)
    raise ValueError(f"{path}: outputs are {known} (also with {' or '.join(COMPRESSIONS)}) or .parquet files")
