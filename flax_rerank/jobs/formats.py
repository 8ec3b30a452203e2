"""Output formats: how rows and their scores become a file, and the files of all shards one."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flax_rerank.jobs import files
from flax_rerank.jobs.rows import Row
from flax_rerank.jobs.sources.parquet import json_holds, open_parquet, schema_of, unify_schemas

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET = ".parquet"
RUNS = (".trec", ".run", ".txt")
SUFFIX = re.compile(r"\.parquet$|\.(jsonl|trec|run|txt)(\.gz|\.zst)?$")
TAG = "flax-rerank"
PARQUET_COMPRESSION = "zstd"
# What pyarrow raises for values that make no column.
NOT_A_COLUMN = (ValueError, TypeError, OverflowError, NotImplementedError)


@dataclass(frozen=True)
class Format:
    """JSON lines or a TREC run (.gz, .zst or neither), or Parquet (needs pyarrow).

    Raises ValueError if the tag of a TREC run is not one word.
    """

    suffix: str  # what file names end in; it names the format
    # Of the records, for Parquet. Without it, each part has the fields and types of its own records (a field that a
    # record lacks is null), and the joined file has types that hold all values.
    schema: "pa.Schema | None" = None
    tag: str = TAG  # the name of a TREC run

    def __post_init__(self) -> None:
        if self.is_run and (len(self.tag.split()) != 1 or self.tag != self.tag.strip()):
            raise ValueError(f"the tag {self.tag!r} is not one word")

    @property
    def is_run(self) -> bool:
        """Whether it is a TREC run."""
        return self.suffix.startswith(RUNS)

    def write(self, path: str, rows: Sequence[Row], scores: Mapping[str, np.ndarray]) -> None:
        """Write one shard's rows with their scores (a float array [rows] for each field) to a new file.

        Raises:
            ValueError: a value that does not fit its Parquet column, by row and field; a TREC run with several scores
                or without ids.
        """
        if self.suffix == PARQUET:
            _write_parquet(path, rows, scores, self.schema)
        else:
            lines = _run_lines(rows, scores, self.tag) if self.is_run else _json_lines(rows, scores)
            with files.open_output(path) as sink:
                sink.writelines(lines)

    def join(self, parts: Sequence[str], path: str) -> None:
        """Write one file with all rows of the parts, in order. One part at a time is in memory.

        Raises ValueError, with the field, if no type holds the values that it has in two Parquet parts.
        """
        if self.suffix != PARQUET:
            files.concatenate(parts, path)
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            schema = unify_schemas({part: schema_of(part) for part in parts})
        except ValueError as error:
            raise ValueError(f"{error}. The parts cannot be joined: write JSON lines, or a folder of parts") from error
        with (
            files.open_output(path) as sink,
            pq.ParquetWriter(sink, schema, compression=PARQUET_COMPRESSION) as writer,
        ):
            for part in parts:
                with open_parquet(part) as table:
                    tables = [schema.empty_table(), table.read()]
                    writer.write_table(pa.concat_tables(tables, promote_options="permissive"))


def format_of(path: str, *, schema: "pa.Schema | None" = None, tag: str = TAG) -> Format:
    """The format that a file's name says: .jsonl, .trec, .run or .txt (also with .gz or .zst), or .parquet.

    Raises ValueError for another suffix.
    """
    found = SUFFIX.search(path)
    if found is None:
        known = f".jsonl, {', '.join(RUNS)} (also with {' or '.join(files.COMPRESSIONS)}) or .parquet"
        raise ValueError(f"{path}: outputs are {known} files, or folders: names without a suffix or with / at the end")
    return Format(found[0], schema, tag)


def json_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line. NaN and infinity, which JSON lacks, become null."""
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False)
    # UTF-8 cannot hold a lone surrogate. As a backslash escape it is JSON, and the field keeps its value.
    return (text + "\n").encode("utf-8", "backslashreplace")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json_lines(rows: Sequence[Row], scores: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """One object a line: the row's record, and a field for each score."""
    columns = [values.tolist() for values in scores.values()]
    for row, *values in zip(rows, *columns, strict=True):
        yield json_line({**row.record, **dict(zip(scores, values, strict=True))})


def _run_lines(rows: Sequence[Row], scores: Mapping[str, np.ndarray], tag: str) -> Iterator[bytes]:
    """Lines of "qid Q0 docid rank score tag". Queries keep their order. The highest score of each comes first, equal
    ones in the order of the rows. Ranks start at 1. All rows of a query are here, as the shards of a run have them."""
    if len(scores) != 1:
        raise ValueError(f"a TREC run has one score, not {', '.join(scores)}: give one cutoff layer")
    (values,) = scores.values()
    queries: dict[str, list[tuple[float, str]]] = {}
    for row, score in zip(rows, values.tolist(), strict=True):
        if "qid" not in row.record or "docid" not in row.record:
            raise ValueError(f"row {row.number} has no qid and docid: only a TREC run can be written as one")
        queries.setdefault(row.record["qid"], []).append((score, row.record["docid"]))
    for qid, passages in queries.items():
        passages.sort(key=lambda passage: -passage[0])
        for rank, (score, docid) in enumerate(passages, start=1):
            yield f"{qid} Q0 {docid} {rank} {score!r} {tag}\n".encode()


def _write_parquet(
    path: str, rows: Sequence[Row], scores: Mapping[str, np.ndarray], schema: "pa.Schema | None"
) -> None:
    """A column for each field of the records, and one for each score, of its dtype."""
    pa = files.import_pyarrow(path)
    import pyarrow.parquet as pq

    names = dict.fromkeys(name for row in rows for name in row.record) if schema is None else schema.names
    columns = {}
    for name in names:
        if name not in scores:
            kind = None if schema is None else schema.field(name).type
            values = [row.record.get(name) for row in rows]
            if kind is not None and not json_holds(kind):  # those are Arrow's, each of the type of its file
                values = [value.cast(kind) if isinstance(value, pa.Scalar) else value for value in values]
            try:
                columns[name] = pa.array(values, kind)
            except NOT_A_COLUMN as error:
                number = rows[_first_misfit(values, kind)].number
                raise ValueError(
                    f'row {number}: the field "{name}" does not fit into a column with the rows before it: {error}; '
                    "write JSON lines, or leave the field out"
                ) from error
            if _has_empty_struct(columns[name].type):
                number = next(row.number for row, value in zip(rows, values, strict=True) if value is not None)
                raise ValueError(
                    f'row {number}: the field "{name}" holds objects without fields, which Parquet cannot store; '
                    "write JSON lines, or leave the field out"
                )
    table = pa.table(columns | {name: pa.array(values) for name, values in scores.items()})
    with files.open_output(path) as sink:
        pq.write_table(table, sink, compression=PARQUET_COMPRESSION)


def _has_empty_struct(kind: "pa.DataType") -> bool:
    import pyarrow.types as types

    inner = [kind.field(index).type for index in range(kind.num_fields)] if types.is_nested(kind) else []
    return (types.is_struct(kind) and not inner) or any(map(_has_empty_struct, inner))


def _first_misfit(values: Sequence[Any], kind: "pa.DataType | None") -> int:
    """The index of the first value that makes no column with those before it."""
    import pyarrow as pa

    fits, fails = 0, len(values)  # that many values do
    while fails - fits > 1:
        middle = (fits + fails) // 2
        try:
            pa.array(values[:middle], kind)
            fits = middle
        except NOT_A_COLUMN:
            fails = middle
    return fails - 1
