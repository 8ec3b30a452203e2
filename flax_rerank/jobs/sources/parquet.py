"""Parquet: one pair a row, with the columns for query and passage and whatever others."""

from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from flax_rerank.jobs import files
from flax_rerank.jobs.rows import Reject, Row, Shard
from flax_rerank.jobs.sources.cursors import Cursors
from flax_rerank.jobs.sources.fingerprint import fingerprint
from flax_rerank.jobs.sources.pair import pair_of

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH_ROWS = 1024


@dataclass
class ParquetSource:
    """Parquet files (paths or URLs), one after the other. Needs pyarrow.

    A record has all columns, as Python values.

    Args:
        files: their paths.
        query_field, passage_field: the columns of the texts.
    """

    files: Sequence[str]
    query_field: str = "query"
    passage_field: str = "passage"
    _cursors: "Cursors[dict[str, Any] | UnicodeDecodeError]" = field(
        default_factory=Cursors, init=False, repr=False, compare=False
    )

    def fingerprint(self) -> str:
        """See `Source`."""
        settings = ["parquet", self.query_field, self.passage_field]
        return fingerprint(settings, [files.digest(file) for file in self.files])

    def schema(self) -> "pa.Schema":
        """The columns of all files together, with the types that hold them all.

        Raises:
            ValueError: no type holds the values that a column has in two files.
        """
        return unify_schemas({file: schema_of(file) for file in self.files})

    def shards(self, rows: int) -> list[Shard]:
        """See `Source`. Only the files' metadata is read."""
        if rows < 1:
            raise ValueError(f"a shard of {rows} rows; it must have at least 1")
        shards: list[Shard] = []
        for file in self.files:
            with open_parquet(file) as table:
                self._require_columns(file, table.schema_arrow)
                starts = group_starts(table)
            total = starts.pop()
            if total == 0:
                raise ValueError(f"{file} holds no rows")
            for start in range(0, total, rows):
                group = bisect_right(starts, start) - 1
                shards.append(Shard(len(shards), file, start + 1, min(rows, total - start), group))
        self.schema()
        return shards

    def read(self, shard: Shard) -> Iterator[Row | Reject]:
        """See `Source`."""
        records = self._cursors.take(shard, lambda: records_from(shard.file, shard.offset))
        for number, record in enumerate(records, start=shard.first):
            if isinstance(record, UnicodeDecodeError):
                yield Reject(shard.file, number, f"not UTF-8: {record}")
                continue
            try:
                query, passage = pair_of(record, self.query_field, self.passage_field)
            except ValueError as error:
                yield Reject(shard.file, number, str(error))
            else:
                yield Row(number, query, passage, record)

    def _require_columns(self, file: str, schema: "pa.Schema") -> None:
        import pyarrow.types as types

        for column in (self.query_field, self.passage_field):
            if column not in schema.names:
                raise ValueError(f'{file} has no column "{column}", only {", ".join(schema.names)}')
            kind = schema.field(column).type
            values = kind.value_type if types.is_dictionary(kind) else kind
            if not (types.is_string(values) or types.is_large_string(values) or types.is_string_view(values)):
                raise ValueError(f'{file}: the column "{column}" holds no strings but {kind}')


@contextmanager
def open_parquet(file: str) -> "Iterator[pq.ParquetFile]":
    """A Parquet file by path or URL, read piece by piece.

    Raises:
        ValueError: it is not a Parquet file.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f"{file}: Parquet needs pyarrow; install flax-rerank[files]") from error

    with files.open_raw(file) as stream:
        try:
            table = pq.ParquetFile(stream, buffer_size=files.BLOCK, pre_buffer=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{file} is not a Parquet file: {error}") from error
        yield table


def schema_of(file: str) -> "pa.Schema":
    """The columns of a file. What pandas and others say about them beside is left out."""
    with open_parquet(file) as table:
        return table.schema_arrow.remove_metadata()


def unify_schemas(schemas: "dict[str, pa.Schema]") -> "pa.Schema":
    """One schema that takes the rows of all files: all columns, each with the narrowest type that holds all values.

    Raises:
        ValueError: no type holds them; names the column and the file.
    """
    import pyarrow as pa

    unified: pa.Schema | None = None
    for file, schema in schemas.items():
        try:
            unified = schema if unified is None else pa.unify_schemas([unified, schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise ValueError(f"{file} does not go with the files before it: {error}") from error
    if unified is None:
        raise ValueError("no files, so no schema")
    return unified


def group_starts(table: "pq.ParquetFile") -> list[int]:
    """Rows before each row group, and after the last."""
    counts = (table.metadata.row_group(group).num_rows for group in range(table.num_row_groups))
    return list(accumulate(counts, initial=0))


def records_from(file: str, group: int) -> tuple[int, Generator[dict[str, Any] | UnicodeDecodeError]]:
    """The number of a row group's first row, and the records from there to the end of the file."""
    with open_parquet(file) as table:
        first = group_starts(table)[group] + 1

    def records() -> Generator[dict[str, Any] | UnicodeDecodeError]:
        with open_parquet(file) as table:
            groups = range(group, table.num_row_groups)
            for batch in table.iter_batches(BATCH_ROWS, row_groups=groups):
                yield from _records_of(batch)

    return first, records()


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
