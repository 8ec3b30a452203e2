"""Parquet: one pair a row, with columns for query and passage and any others. Needs pyarrow."""

from bisect import bisect_right
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
    """Parquet files. A record has all columns, as Python values."""

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
            *starts, total = _group_starts(table)
        return total, [bisect_right(starts, before) - 1 for before in range(0, total, rows)]

    def _require_columns(self, file: str, schema: "pa.Schema") -> None:
        import pyarrow.types as types

        for column in (self.query_field, self.passage_field):
            if column not in schema.names:
                raise ValueError(f'{file} has no column "{column}", only {", ".join(schema.names)}')
            kind = schema.field(column).type
            values = kind.value_type if types.is_dictionary(kind) else kind
            if not (types.is_string(values) or types.is_large_string(values) or types.is_string_view(values)):
                raise ValueError(f'{file}: the column "{column}" holds no strings but {kind}')

    def _open(self, shard: Shard) -> tuple[int, Generator[dict[str, Any] | UnicodeDecodeError]]:
        def records() -> Generator[dict[str, Any] | UnicodeDecodeError]:
            with open_parquet(shard.file) as table:
                groups = range(shard.offset, table.num_row_groups)
                for batch in table.iter_batches(BATCH_ROWS, row_groups=groups):
                    yield from _records_of(batch)

        with open_parquet(shard.file) as table:
            return _group_starts(table)[shard.offset] + 1, records()

    def _record(self, raw: dict[str, Any] | UnicodeDecodeError) -> dict[str, Any]:
        if isinstance(raw, UnicodeDecodeError):
            raise ValueError(f"not UTF-8: {raw}")
        return raw


@contextmanager
def open_parquet(file: str) -> "Iterator[pq.ParquetFile]":
    """A Parquet file by path or URL, read piece by piece. Raises ValueError if it is not one."""
    pa = files.import_pyarrow(file)
    import pyarrow.parquet as pq

    with files.open_raw(file) as stream:
        try:
            table = pq.ParquetFile(stream, buffer_size=files.BLOCK, pre_buffer=False)
        except (pa.ArrowInvalid, OSError) as error:
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


def _group_starts(table: "pq.ParquetFile") -> list[int]:
    """Rows before each row group, and after the last."""
    counts = (table.metadata.row_group(group).num_rows for group in range(table.num_row_groups))
    return list(accumulate(counts, initial=0))


def _records_of(batch: "pa.RecordBatch") -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """A dict for each row, or the error of one whose strings are not UTF-8: Parquet does not check them."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield error
