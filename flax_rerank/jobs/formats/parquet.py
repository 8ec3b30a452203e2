"""Parquet: the record of each row with its scores, a column each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flax_rerank.jobs import files
from flax_rerank.jobs.rows import Row
from flax_rerank.jobs.sources.parquet import open_parquet, schema_of, unify_schemas

if TYPE_CHECKING:
    import pyarrow as pa

COMPRESSION = "zstd"


@dataclass(frozen=True)
class ParquetFormat:
    """A column for each field of the records, and one for each score, of its dtype. Needs pyarrow.

    Args:
        schema: the schema of the records. Without it, each part has the fields and types of its own records (a field
            that a record lacks is null), and the joined file has types that hold the values of all parts.
    """

    schema: "pa.Schema | None" = None
    suffix: str = ".parquet"

    def write(self, path: str, rows: Sequence[Row], scores: Mapping[str, np.ndarray]) -> None:
        """See `Format`.

        Raises:
            ValueError: the values of a field cannot be in one column.
        """
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise ImportError(f"{path}: Parquet needs pyarrow; install flax-rerank[files]") from error

        fields = (
            dict.fromkeys(name for row in rows for name in row.record) if self.schema is None else self.schema.names
        )
        columns = {name: _column(rows, name, self.schema) for name in fields if name not in scores}
        table = pa.table(columns | {name: pa.array(values) for name, values in scores.items()})
        with files.open_output(path) as sink:
            pq.write_table(table, sink, compression=COMPRESSION)

    def join(self, parts: Sequence[str], path: str) -> None:
        """See `Format`.

        Raises:
            ValueError: no type holds the values that a field has in two parts.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = unify_schemas({part: schema_of(part) for part in parts})
        with (
            files.open_output(path) as sink,
            pq.ParquetWriter(sink, schema, compression=COMPRESSION) as writer,
        ):
            for part in parts:
                with open_parquet(part) as table:
                    writer.write_table(
                        pa.concat_tables([schema.empty_table(), table.read()], promote_options="permissive")
                    )


def _column(rows: Sequence[Row], name: str, schema: "pa.Schema | None") -> "pa.Array":
    import pyarrow as pa

    kind = None if schema is None else schema.field(name).type
    try:
        return pa.array([row.record.get(name) for row in rows], kind)
    except (pa.ArrowException, OverflowError, TypeError, UnicodeError) as error:
        raise ValueError(f'the values of the field "{name}" cannot be in one column: {error}') from error
