"""Parquet: one pair a row, with columns for query and passage and any others. Needs pyarrow."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from flax_rerank.jobs import files
from flax_rerank.jobs.rows import Shard
from flax_rerank.jobs.sources.pairs import PairSource

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH_ROWS = 1024


class ParquetSource(PairSource):
    """Parquet files. A record has all columns, as Python values; those of types that JSON lacks as Arrow's scalars,
    since Python's times are coarser."""

    kind = "parquet"

    def schema(self) -> "pa.Schema":
        """The columns of all files together, with types that hold all their values. Raises as `unify_schemas`."""
        return unify_schemas({file: schema_of(file) for file in self.files})

    def shards(self, rows: int) -> list[Shard]:
        """See `PairSource`. Only the files' metadata is read."""
        shards = super().shards(rows)
        self.schema()
        return shards

    def _cut(self, file: str, rows: int) -> tuple[int, list[int]]:
        with open_parquet(file) as table:
            self._require_columns(file, table.schema_arrow)
            *starts, total = _group_starts(file, table)
        return total, [bisect_right(starts, before) - 1 for before in range(0, total, rows)]

    def _require_columns(self, file: str, schema: "pa.Schema") -> None:
        import pyarrow.types as types

        twice = [name for name, count in Counter(schema.names).items() if count > 1]
        if twice:
            raise ValueError(f'{file} has more than one column "{twice[0]}"; rename or drop the others')
        for column in (self.query_field, self.passage_field):
            if column not in schema.names:
                raise ValueError(f'{file} has no column "{column}", only {", ".join(schema.names)}')
            kind = schema.field(column).type
            values = kind.value_type if types.is_dictionary(kind) else kind
            if not (types.is_string(values) or types.is_large_string(values) or types.is_string_view(values)):
                raise ValueError(f'{file}: the column "{column}" holds {kind}, not strings')

    def _open(self, shard: Shard) -> tuple[int, Generator[dict[str, Any] | ValueError]]:
        def records() -> Generator[dict[str, Any] | ValueError]:
            with open_parquet(shard.file) as table:
                starts = _group_starts(shard.file, table)
                for group in range(shard.offset, table.num_row_groups):
                    for batch in _batches(shard.file, table, group, starts[group]):
                        yield from _records_of(batch)

        with open_parquet(shard.file) as table:
            return _group_starts(shard.file, table)[shard.offset] + 1, records()

    def _record(self, raw: dict[str, Any]) -> dict[str, Any]:
        return raw


@contextmanager
def open_parquet(file: str) -> "Iterator[pq.ParquetFile]":
    """A Parquet file by path or URL, read piece by piece. Raises ValueError if it is not one."""
    pa = files.import_pyarrow(file)
    import pyarrow.parquet as pq

    with files.open_raw(file) as stream:
        try:
            table = pq.ParquetFile(stream, buffer_size=files.BLOCK, pre_buffer=False, page_checksum_verification=True)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is not a Parquet file: {error}") from error
        yield table


def schema_of(file: str) -> "pa.Schema":
    """The columns of a file, without the metadata that pandas and others add."""
    with open_parquet(file) as table:
        return table.schema_arrow.remove_metadata()


def unify_schemas(schemas: "dict[str, pa.Schema]") -> "pa.Schema":
    """One schema for the rows of all files: all columns, each with the narrowest type that holds all its values.

    Raises ValueError, with the column and the file, if no type does.
    """
    import pyarrow as pa

    (_, unified), *others = schemas.items()
    for file, schema in others:
        try:
            unified = pa.unify_schemas([unified, schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise ValueError(f"{file} does not go with the files before it: {error}") from error
    return unified


def _group_starts(file: str, table: "pq.ParquetFile") -> list[int]:
    """Rows before each row group, and after the last. Raises ValueError for a count that cannot be."""
    counts = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
    if any(count < 0 for count in counts):
        raise ValueError(f"{file} is damaged: a row group has {min(counts)} rows")
    return list(accumulate(counts, initial=0))


def json_holds(kind: "pa.DataType") -> bool:
    """Whether JSON has a type for the values of a column."""
    import pyarrow.types as types

    if types.is_nested(kind):
        return all(json_holds(kind.field(index).type) for index in range(kind.num_fields))
    if types.is_dictionary(kind):
        return json_holds(kind.value_type)
    strings = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return (
        strings or types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_null(kind)
    )


def _batches(file: str, table: "pq.ParquetFile", group: int, before: int) -> "Iterator[pa.RecordBatch]":
    """A row group, piece by piece; `before` rows come before it. Raises ValueError that names the rows and columns
    that cannot be read."""
    import pyarrow as pa

    done = 0
    try:
        for batch in table.iter_batches(BATCH_ROWS, row_groups=[group]):
            yield batch
            done += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        rows = table.metadata.row_group(group).num_rows
        columns = [name for name in table.schema_arrow.names if not _is_readable(table, group, name)]
        raise ValueError(
            f"{file}: rows {before + done + 1} to {before + rows} cannot be read, because of the columns "
            f"{', '.join(columns)}: {error}"
        ) from error


def _is_readable(table: "pq.ParquetFile", group: int, column: str) -> bool:
    import pyarrow as pa

    try:
        table.read_row_group(group, [column])
    except (pa.ArrowException, OSError):
        return False
    return True


def _values(column: "pa.Array") -> list[Any]:
    if json_holds(column.type):
        return column.to_pylist()
    return [scalar if scalar.is_valid else None for scalar in column]


def _records_of(batch: "pa.RecordBatch") -> Iterator[dict[str, Any] | ValueError]:
    """A dict for each row, or the error of one whose strings are not UTF-8: Parquet does not check them."""
    names = batch.schema.names
    try:
        columns = [_values(column) for column in batch.columns]
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            yield ValueError(f"not UTF-8: {error}")
            return
        for index in range(batch.num_rows):
            yield from _records_of(batch.slice(index, 1))
    else:
        for values in zip(*columns, strict=True):
            yield dict(zip(names, values, strict=True))
