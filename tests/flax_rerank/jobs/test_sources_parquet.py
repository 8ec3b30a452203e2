"""Parquet: shards across row groups, columns checked before anything is scored."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flax_rerank.jobs.rows import Reject, Row
from flax_rerank.jobs.sources import ParquetSource


def write(path, count=50, **more):
    columns = {
        "id": pa.array(range(count), pa.int32()),
        "query": [f"q{n}" for n in range(count)],
        "passage": [f"p{n}" for n in range(count)],
    }
    pq.write_table(pa.table(columns | more), path, row_group_size=8)
    return str(path)


def rows_of(source, shards):
    return [row for shard in shards for row in source.read(shard)]


@pytest.mark.parametrize("size", [1, 8, 11, 1000])
def test_shards_cover_all_rows_in_order(tmp_path, size):
    source = ParquetSource([write(tmp_path / "a.parquet"), write(tmp_path / "b.parquet", 9)])
    shards = source.shards(size)
    assert [shard.index for shard in shards] == list(range(-(-50 // size) + -(-9 // size)))
    rows = rows_of(source, shards)
    assert [row.number for row in rows] == [*range(1, 51), *range(1, 10)]
    assert rows[20] == Row(21, "q20", "p20", {"id": 20, "query": "q20", "passage": "p20"})
    copy = pickle.loads(pickle.dumps(source))
    assert rows_of(copy, reversed(shards))[-1] == list(source.read(shards[0]))[-1]
    assert shards[-1].offset == (shards[-1].first - 1) // 8


def test_nulls_and_bad_text_are_rejects(tmp_path):
    broken = pa.Array.from_buffers(
        pa.string(), 4, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb")]
    )
    path = write(tmp_path / "a.parquet", 4, query=["a", "b", None, "d"], passage=broken)
    source = ParquetSource([path])
    row, *rejects = rows_of(source, source.shards(10))
    assert (row.number, row.query, row.passage) == (1, "a", "a")
    assert all(isinstance(reject, Reject) and reject.file == path for reject in rejects)
    assert [reject.number for reject in rejects] == [2, 3, 4]
    assert rejects[0].reason.startswith("not UTF-8: 'utf-8' codec can't decode byte 0xff")
    assert [reject.reason for reject in rejects[1:]] == ['"query" is null', "the passage is empty"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (("query", "text"), r'a\.parquet has no column "text", only id, query, passage$'),
        (("id", "passage"), r'a\.parquet: the column "id" holds no strings but int32'),
    ],
)
def test_columns_are_checked_before_scoring(tmp_path, fields, reason):
    with pytest.raises(ValueError, match=reason):
        ParquetSource([write(tmp_path / "a.parquet")], *fields).shards(10)


def test_categories_are_strings(tmp_path):
    source = ParquetSource([write(tmp_path / "a.parquet", 2, query=pa.array(["x", "y"]).dictionary_encode())])
    assert [row.query for row in rows_of(source, source.shards(10))] == ["x", "y"]


def test_files_that_are_none_are_named(tmp_path):
    (tmp_path / "a.parquet").write_text("no table")
    with pytest.raises(ValueError, match=r"a\.parquet is not a Parquet file"):
        ParquetSource([str(tmp_path / "a.parquet")]).shards(10)
    with pytest.raises(ValueError, match=r"b\.parquet holds no rows"):
        ParquetSource(
            [write(tmp_path / "b.parquet", 0, query=pa.array([], pa.string()), passage=pa.array([], pa.string()))]
        ).shards(10)
    with pytest.raises(FileNotFoundError, match=r"c\.parquet"):
        ParquetSource([str(tmp_path / "c.parquet")]).shards(10)


def test_the_schema_holds_the_columns_of_all_files(tmp_path):
    paths = [write(tmp_path / "a.parquet"), write(tmp_path / "b.parquet", 1, id=[2.5], note=["n"])]
    schema = ParquetSource(paths).schema()
    assert {field.name: str(field.type) for field in schema} == {
        "id": "double",
        "query": "string",
        "passage": "string",
        "note": "string",
    }
    paths.append(write(tmp_path / "c.parquet", 1, id=["text"]))
    with pytest.raises(ValueError, match=r"c\.parquet does not go with the files before it: .*Field id"):
        ParquetSource(paths).shards(10)


def test_the_fingerprint_is_that_of_the_content_and_the_columns(tmp_path):
    a, b, c = (write(tmp_path / f"{name}.parquet", count) for name, count in (("a", 3), ("b", 3), ("c", 4)))
    assert ParquetSource([a]).fingerprint() == ParquetSource([b]).fingerprint()
    sources = [ParquetSource([a]), ParquetSource([c]), ParquetSource([a, c]), ParquetSource([a], "q")]
    assert len({source.fingerprint() for source in sources}) == 4
