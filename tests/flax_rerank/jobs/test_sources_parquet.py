"""Parquet: shards across row groups, columns checked before anything is scored."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flax_rerank.jobs.formats import Format
from flax_rerank.jobs.rows import Reject, Row
from flax_rerank.jobs.sources import Limits, ParquetSource
from flax_rerank.jobs.sources.parquet import json_holds


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
        (("id", "passage"), r'a\.parquet: the column "id" holds int32, not strings$'),
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


def test_digests_are_those_of_the_content(tmp_path):
    a, b, c = (write(tmp_path / f"{name}.parquet", count) for name, count in (("a", 3), ("b", 3), ("c", 4)))
    digests = ParquetSource([a, b, c]).digests()
    assert [file for file, _ in digests] == [a, b, c]
    assert digests[0][1] == digests[1][1] != digests[2][1]


@pytest.mark.parametrize("name", ["query", "id"])
def test_a_column_that_is_there_twice_is_refused(tmp_path, name):
    path = str(tmp_path / "a.parquet")
    names = ["query", "passage", "id", name]
    pq.write_table(pa.table([pa.array(["x"])] * 4, names=names), path)
    with pytest.raises(ValueError, match=rf'a\.parquet has more than one column "{name}"; rename or drop the others'):
        ParquetSource([path]).shards(10)


@pytest.mark.parametrize("checksum", [True, False])
def test_a_corrupt_page_is_named_by_file_rows_and_column(tmp_path, checksum):
    path = tmp_path / "a.parquet"
    table = pa.table({"query": [f"q{n}" for n in range(20)], "passage": [f"p{n}" * 50 for n in range(20)]})
    pq.write_table(
        table, path, row_group_size=8, compression="gzip", use_dictionary=False, write_page_checksum=checksum
    )
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    for place in range(1, 9):
        data[chunk.data_page_offset + chunk.total_compressed_size - place] ^= 0xFF
    path.write_bytes(data)
    source = ParquetSource([str(path)])
    rows = source.read(source.shards(100)[0])
    with pytest.raises(ValueError, match=r"a\.parquet: rows 9 to 16 cannot be read, because of the columns passage: "):
        list(rows)


def test_a_damaged_name_of_a_column_is_named_by_file(tmp_path):
    path = Path(write(tmp_path / "a.parquet"))
    path.write_bytes(path.read_bytes().replace(b"passage", b"passag\xf0"))
    with pytest.raises(ValueError, match=r"a\.parquet is not a Parquet file"):
        ParquetSource([str(path)]).shards(10)


def test_a_long_text_of_a_table_is_rejected(tmp_path):
    source = ParquetSource([write(tmp_path / "a.parquet", 2, passage=["123456", "12345"])], limits=Limits(1, 5))
    long, short = rows_of(source, source.shards(10))
    assert long.reason == "the passage has 6 characters, more than 5 (max_text_chars)"
    assert short.passage == "12345"


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.timestamp("ns"), pa.timestamp("us", "UTC"), pa.date32(), pa.duration("ns"), pa.binary()),
        *(pa.decimal128(5, 2), pa.list_(pa.timestamp("ns")), pa.struct([("a", pa.time64("ns"))])),
    ],
)
def test_types_that_json_lacks_keep_every_bit(tmp_path, kind):
    values = pa.array([None, 1234567891234567891 if pa.types.is_timestamp(kind) else None], kind)
    source = ParquetSource([write(tmp_path / "a.parquet", 2, more=values)])
    rows = rows_of(source, source.shards(10))
    assert not json_holds(kind)
    Format(".parquet", source.schema()).write(str(tmp_path / "b.parquet"), rows, {"score": np.ones(2)})
    written = pq.read_table(tmp_path / "b.parquet")["more"]
    assert written.type == kind
    assert written.combine_chunks().equals(values)


def test_a_coarser_time_is_written_in_the_unit_of_all_files(tmp_path):
    coarse, fine = (pa.array([1, None], pa.timestamp(unit)) for unit in ("ms", "ns"))
    paths = [write(tmp_path / "a.parquet", 2, at=coarse), write(tmp_path / "b.parquet", 2, at=fine)]
    source = ParquetSource(paths)
    rows = rows_of(source, source.shards(10))
    Format(".parquet", source.schema()).write(str(tmp_path / "c.parquet"), rows, {"score": np.ones(4)})
    assert pq.read_table(tmp_path / "c.parquet")["at"].cast("int64").to_pylist() == [1_000_000, None, 1, None]


def test_a_row_group_with_fewer_than_no_rows_is_damage(tmp_path):
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"query": ["a"] * 3, "passage": ["b"] * 3}), path)
    whole = path.read_bytes()
    for place in reversed(range(len(whole) - 8)):  # the counts are in the footer
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            rows = pq.ParquetFile(path).metadata.row_group(0).num_rows
        except (pa.ArrowException, OSError, RuntimeError, IndexError):
            continue
        if rows < 0:
            break
    with pytest.raises(ValueError, match=r"pairs.parquet is damaged: a row group has -\d+ rows"):
        ParquetSource([str(path)]).shards(10)
