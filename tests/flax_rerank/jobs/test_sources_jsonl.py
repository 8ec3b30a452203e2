"""JSON lines: shards that cover each line once, and rows that say what is wrong with them."""

import gzip
import json
import pickle
import tracemalloc

import pytest

from flax_rerank.jobs import files
from flax_rerank.jobs.rows import Reject, Row, Shard
from flax_rerank.jobs.sources import JsonlSource, ParquetSource, open_source
from flax_rerank.jobs.sources.records import Limits, numbered_lines


def write(path, *lines, end="\n"):
    with files.open_output(str(path)) as sink:
        sink.write("\n".join(lines).encode("utf-8", "surrogateescape") + end.encode())
    return str(path)


def pair(number, **more):
    return json.dumps({"query": f"q{number}", "passage": "é" * (number % 7 + 1), **more}, ensure_ascii=False)


def rows_of(source, shards):
    return [row for shard in shards for row in source.read(shard)]


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("size", [1, 7, 20, 1000])
def test_shards_cover_all_rows_in_order(tmp_path, monkeypatch, size, suffix, end):
    monkeypatch.setattr(files, "BLOCK", 64)  # so that shards end in, before and behind blocks
    paths = [
        write(tmp_path / f"{name}.jsonl{suffix}", *map(pair, range(count)), end=end)
        for name, count in (("a", 20), ("b", 33))
    ]
    source = JsonlSource(paths)
    shards = source.shards(size)
    assert [shard.index for shard in shards] == list(range(-(-20 // size) + -(-33 // size)))
    assert sum(shard.rows for shard in shards) == 53
    rows = rows_of(source, shards)
    assert [row.number for row in rows] == [*range(1, 21), *range(1, 34)]
    assert [row.query for row in rows] == [f"q{n}" for n in (*range(20), *range(33))]
    assert rows[9] == Row(10, "q9", "ééé", {"query": "q9", "passage": "ééé"})


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_shards_are_read_in_any_order_and_in_another_process(tmp_path, suffix):
    source = JsonlSource([write(tmp_path / f"a.jsonl{suffix}", *map(pair, range(20)))])
    shards = source.shards(6)
    expected = {shard: list(source.read(shard)) for shard in shards}
    copy = pickle.loads(pickle.dumps(source))
    for shard in (shards[2], shards[3], shards[0], shards[2], shards[0], shards[3]):
        half = copy.read(shard)
        assert next(half) == expected[shard][0]
        half.close()
        assert list(copy.read(shard)) == expected[shard]


def test_a_compressed_file_is_not_opened_for_each_shard(tmp_path, monkeypatch):
    source = JsonlSource([write(tmp_path / "a.jsonl.gz", *map(pair, range(20)))])
    shards = source.shards(4)
    opened = []
    monkeypatch.setattr(files, "open_input", lambda path, real=files.open_input: (opened.append(path), real(path))[1])
    assert len(rows_of(source, [shards[0], shards[1], shards[4]])) == 12
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nope", "not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("[" * 100_000, "not JSON: maximum recursion depth exceeded"),
        ('"\udcff"', "not JSON: 'utf-8' codec can't decode byte 0xff"),
        ("[1]", "not a JSON object but list"),
        ('{"query": "q"}', '"passage" is missing'),
        ('{"passage": "p"}', '"query" is missing'),
        ('{"query": 1, "passage": "p"}', '"query" is not a string but int'),
        ('{"query": "q", "passage": null}', '"passage" is null'),
        ('{"query": "q", "passage": ""}', "the passage is empty"),
        ('{"query": "q", "passage": " \\n"}', "the passage is empty"),
        ('{"query": "", "passage": "p"}', "the query is empty"),
        ('{"query": "q", "passage": "a\\ud800b"}', r"the passage holds a lone surrogate, '\ud800'"),
    ],
)
def test_a_row_that_cannot_be_scored_is_a_reject_in_its_place(tmp_path, line, reason):
    path = write(tmp_path / "a.jsonl", pair(1), "", line, pair(2))
    source = JsonlSource([path])
    first, reject, last = rows_of(source, source.shards(10))
    assert (first.number, last.number) == (1, 4)
    assert isinstance(reject, Reject)
    assert (reject.file, reject.number) == (path, 3)
    assert reject.reason.startswith(reason)


def test_a_byte_order_mark_is_skipped_and_utf16_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(pair(1), encoding="utf-8-sig")
    source = JsonlSource([str(path)])
    assert [row.query for row in rows_of(source, source.shards(10))] == ["q1"]
    assert list(numbered_lines(str(path), Limits())) == [(1, pair(1).encode())]
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        path.write_text(pair(1), encoding=encoding)
        for read in (lambda: source.shards(10), lambda: list(numbered_lines(str(path), Limits()))):
            with pytest.raises(ValueError, match=r"a\.jsonl is UTF-16; convert it to UTF-8"):
                read()


@pytest.mark.parametrize("place", ["{}/a.jsonl", "{}/a.jsonl.gz", "{}/a.jsonl.zst", "memory://{}/a.jsonl"])
def test_what_exceeds_a_limit_is_rejected_by_line(tmp_path, place):
    fits = pair(7)  # of 33 bytes
    lines = [
        fits,
        fits + " ",
        '{"query": "q7", "passage": "x"}' + " " * 200,
        '{"query": "1234567", "passage": "x"}',
        fits,
    ]
    path = write(place.format(tmp_path), *lines[:3], fits, '{"query": "12345678"}', fits, "", end=fits)
    source = JsonlSource([path], limits=Limits(len(fits.encode()), 5))
    shards = source.shards(2)
    rows = rows_of(source, shards)
    assert [row.number for row in rows] == [*range(1, 7), 7]
    assert [row.number for row in rows if isinstance(row, Row)] == [1, 4, 6, 7]
    assert [row.reason for row in rows if isinstance(row, Reject)] == [
        *[f"the line has more than {len(fits.encode())} bytes (max_line_bytes)"] * 2,
        '"passage" is missing',
    ]


def test_a_long_text_is_rejected_in_every_input(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"query": "123456", "passage": "x"}', '{"query": "x", "passage": "12345"}')
    rows = rows_of(source := JsonlSource([path], limits=Limits(text_chars=5)), source.shards(9))
    assert rows[0].reason == "the query has 6 characters, more than 5 (max_text_chars)"
    assert rows[1].passage == "12345"


def test_a_long_line_is_not_held_in_memory(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", 1) as sink:
        sink.write(b'{"query": "q", "passage": "')
        for _ in range(40):
            sink.write(b"x" * (1 << 20))
        sink.write(b'"}\n' + pair(1).encode())
    assert path.stat().st_size < 1 << 20
    source = JsonlSource([str(path)], limits=Limits(1 << 16))
    tracemalloc.start()
    long, short = rows_of(source, source.shards(9))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert long.reason == "the line has more than 65,536 bytes (max_line_bytes)"
    assert short.query == "q1"
    assert peak < 16 << 20


def test_fields_may_have_other_names(tmp_path):
    source = JsonlSource([write(tmp_path / "a.jsonl", '{"q": "a", "text": "b", "n": 1}')], "q", "text")
    assert rows_of(source, source.shards(10)) == [Row(1, "a", "b", {"q": "a", "text": "b", "n": 1})]


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_an_empty_file_is_refused(tmp_path, content):
    source = JsonlSource([write(tmp_path / "a.jsonl", pair(1)), write(tmp_path / "b.jsonl", content, end="")])
    with pytest.raises(ValueError, match=r"b\.jsonl holds no rows"):
        source.shards(10)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.jsonl"):
        JsonlSource([str(tmp_path / "a.jsonl")]).shards(10)
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        JsonlSource([str(tmp_path)]).shards(10)
    with pytest.raises(IsADirectoryError, match="is a directory"):
        open_source([str(tmp_path)])


def test_a_shard_has_rows(tmp_path):
    with pytest.raises(ValueError, match="a shard of 0 rows"):
        JsonlSource([write(tmp_path / "a.jsonl", pair(1))]).shards(0)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_that_lost_rows_is_not_read_silently(tmp_path, suffix):
    path = write(tmp_path / f"a.jsonl{suffix}", *map(pair, range(4)))
    with pytest.raises(ValueError, match="has fewer rows than when it was cut"):
        list(JsonlSource([path]).read(Shard(0, path, 1, 5, 0)))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_digests_are_those_of_the_content(tmp_path, suffix):
    a, b, c = (
        write(tmp_path / f"{name}.jsonl{suffix}", *map(pair, range(count)))
        for name, count in (("a", 3), ("b", 3), ("c", 4))
    )
    scanned = JsonlSource([a, c])
    scanned.shards(2)
    assert scanned.digests() == JsonlSource([a, c]).digests()
    (of_a, of_b), of_c = (source.digests() for source in (JsonlSource([a, b]), JsonlSource([c])))
    assert of_a == [a, of_b[1]]
    assert of_c != [[c, of_a[1]]]


def test_urls_are_read_where_a_shard_starts(tmp_path):
    url = write(f"memory://{tmp_path.name}/a.jsonl", *map(pair, range(20)))
    source = JsonlSource([url])
    shards = source.shards(6)
    assert shards[2].offset > 0
    assert [row.query for row in source.read(shards[2])] == [f"q{n}" for n in range(12, 18)]


def test_the_suffix_says_what_an_input_is():
    for name in ("a.jsonl", "a.json", "a.ndjson.gz", "gs://b/a.jsonl.zst"):
        assert open_source([name], query_field="q") == JsonlSource([name], "q")
    assert open_source(["a.parquet"], passage_field="p") == ParquetSource(["a.parquet"], "query", "p")
    with pytest.raises(ValueError, match=r"a\.csv: inputs are \.jsonl"):
        open_source(["a.csv"])
    with pytest.raises(ValueError, match=r"a\.jsonl and b\.parquet have different formats"):
        open_source(["a.jsonl", "b.parquet"])
    with pytest.raises(ValueError, match="no input files"):
        open_source([])
