"""JSON lines: the record of each row with its scores."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flax_rerank.jobs import files
from flax_rerank.jobs.rows import Row


@dataclass(frozen=True)
class JsonlFormat:
    """One object a line (.gz, .zst or neither): the row's record, and a field for each score."""

    suffix: str = ".jsonl"

    def write(self, path: str, rows: Sequence[Row], scores: Mapping[str, np.ndarray]) -> None:
        """See `Format`.

        Raises:
            TypeError: a record holds a value that JSON has no type for, such as a date from a Parquet file.
        """
        columns = [values.tolist() for values in scores.values()]
        with files.open_output(path) as sink:
            for row, *values in zip(rows, *columns, strict=True):
                record = {**row.record, **dict(zip(scores, values, strict=True))}
                try:
                    line = json.dumps(record, ensure_ascii=False) + "\n"
                except TypeError as error:
                    raise TypeError(f"row {row.number}: {error}; write Parquet, or leave the column out") from error
                # UTF-8 cannot hold a lone surrogate. As a backslash escape it is JSON, and the field is what it was.
                sink.write(line.encode("utf-8", "backslashreplace"))

    def join(self, parts: Sequence[str], path: str) -> None:
        """See `Format`."""
        files.concatenate(parts, path)
