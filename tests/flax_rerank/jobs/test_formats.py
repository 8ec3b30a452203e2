"""Outputs: what is written is what was given, and parts make one file."""

import datetime
import gzip
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flax_rerank.jobs import files
from flax_rerank.jobs.formats import Format, format_of
from flax_rerank.jobs.rows import Row


def row(number, **record):
    return Row(number, "q", "p", record)


def scores(*values, name="score"):
    return {name: np.array(values, np.float32)}


def candidate(qid, docid):
    return row(1, qid=qid, docid=docid)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_jsonl_has_the_record_and_its_scores(tmp_path, suffix):
    output = Format(suffix)
    parts = [str(tmp_path / f"{part}{suffix}") for part in range(3)]
    output.write(
        parts[0],
        [row(1, a="é\u2028", score="old"), row(2, b=[None, "\ud800"])],
        scores(0.1, -2) | scores(1, 2, name="x"),
    )
    output.write(parts[1], [], scores())
    output.write(parts[2], [row(9)], scores(3))
    output.join(parts, str(tmp_path / f"all{suffix}"))
    with files.open_input(str(tmp_path / f"all{suffix}")) as stream:
        lines = stream.read().decode("utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [
        {"a": "é\u2028", "score": float(np.float32(0.1)), "x": 1.0},
        {"b": [None, "\ud800"], "score": -2.0, "x": 2.0},
        {"score": 3.0},
    ]
    assert "é" in lines[0]
    assert lines[3] == ""


def test_what_is_not_a_number_is_null(tmp_path):
    values = {"a": math.nan, "b": [1.5, -math.inf, {"c": math.inf}], "d": "NaN"}
    Format(".jsonl").write(str(tmp_path / "a.jsonl"), [row(7, **values)], scores(1))
    assert json.loads((tmp_path / "a.jsonl").read_text(), parse_constant=pytest.fail) == {
        **{"a": None, "b": [1.5, None, {"c": None}], "d": "NaN"},
        "score": 1.0,
    }


def test_every_row_has_a_score(tmp_path):
    for output in (Format(".jsonl"), Format(".trec")):
        with pytest.raises(ValueError, match="zip"):
            output.write(str(tmp_path / "a"), [candidate("q", "d")], scores())


def test_parquet_keeps_the_types_of_the_source(tmp_path):
    schema = pa.schema({"id": pa.int8(), "day": pa.date32(), "score": pa.string(), "none": pa.int64()})
    output = Format(".parquet", schema)
    parts = [str(tmp_path / f"{part}.parquet") for part in range(2)]
    output.write(parts[0], [row(1, id=1, day=datetime.date(2020, 1, 1), score="old", none=None)], scores(0.5))
    output.write(parts[1], [], scores())
    output.join(parts, str(tmp_path / "all.parquet"))
    table = pq.read_table(tmp_path / "all.parquet")
    assert {field.name: field.type for field in table.schema} == {
        "id": pa.int8(),
        "day": pa.date32(),
        "none": pa.int64(),
        "score": pa.float32(),
    }
    assert table.to_pylist() == [{"id": 1, "day": datetime.date(2020, 1, 1), "none": None, "score": 0.5}]


def test_parquet_finds_types_that_hold_all_parts(tmp_path):
    output = Format(".parquet")
    parts = [str(tmp_path / f"{part}.parquet") for part in range(3)]
    output.write(parts[0], [row(1, a=1, b=None, c={"x": 1}), row(2, d=["e"])], scores(0.5, 1))
    output.write(parts[1], [], scores())
    output.write(parts[2], [row(3, a=2.5, b="b", c={"y": "z"}, d=[])], scores(2))
    output.join(parts, str(tmp_path / "all.parquet"))
    assert pq.read_table(tmp_path / "all.parquet").to_pylist() == [
        {"a": 1.0, "b": None, "c": {"x": 1, "y": None}, "d": None, "score": 0.5},
        {"a": None, "b": None, "c": None, "d": ["e"], "score": 1.0},
        {"a": 2.5, "b": "b", "c": {"x": None, "y": "z"}, "d": [], "score": 2.0},
    ]


def test_parquet_names_fields_that_make_no_column(tmp_path):
    output = Format(".parquet")
    first, second = str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")
    for values in ([1, 2, 3, "one", 4], [1, 2, 3, "\ud800"], [1, 2, 3, 2**70, 2**70]):
        with pytest.raises(ValueError, match=r'^row 8: the field "a" does not fit into a column with the rows before'):
            output.write(first, [row(5 + n, a=v) for n, v in enumerate(values)], scores(*range(len(values))))
    for value in ({}, [{"b": {}}]):
        with pytest.raises(ValueError, match=r'^row 4: the field "a" holds objects without fields'):
            output.write(first, [row(3, a=None), row(4, a=value)], scores(1, 2))
    output.write(first, [row(1, a=1)], scores(1))
    output.write(second, [row(1, a="one")], scores(1))
    with pytest.raises(ValueError, match=r"b\.parquet does not go with .*Field a.*write JSON lines"):
        output.join([first, second], str(tmp_path / "all.parquet"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_trec_ranks_within_each_query(tmp_path):
    output = Format(".txt.gz", tag="mine")
    rows = [candidate("q2", "a"), candidate("q2", "b"), candidate("q1", "c"), candidate("q2", "d")]
    output.write(str(tmp_path / "0.txt.gz"), rows, scores(1, 2, -0.5, 2))
    output.write(str(tmp_path / "1.txt.gz"), [candidate("q3", "e")], scores(1e-9))
    output.join([str(tmp_path / "0.txt.gz"), str(tmp_path / "1.txt.gz")], str(tmp_path / "all.txt.gz"))
    assert gzip.decompress((tmp_path / "all.txt.gz").read_bytes()).decode().splitlines() == [
        "q2 Q0 b 1 2.0 mine",
        "q2 Q0 d 2 2.0 mine",
        "q2 Q0 a 3 1.0 mine",
        "q1 Q0 c 1 -0.5 mine",
        f"q3 Q0 e 1 {float(np.float32(1e-9))!r} mine",
    ]


def test_trec_scores_keep_their_order(tmp_path):
    near = [np.float32(1.0), np.nextafter(np.float32(1.0), np.float32(2.0))]
    Format(".trec").write(str(tmp_path / "a"), [candidate("q", "low"), candidate("q", "high")], scores(*near))
    lines = [line.split() for line in (tmp_path / "a").read_text().splitlines()]
    assert [line[2] for line in lines] == ["high", "low"]
    assert math.ulp(1.0) < float(lines[0][4]) - float(lines[1][4])


def test_trec_needs_one_score_and_ids(tmp_path):
    path = str(tmp_path / "a")
    with pytest.raises(ValueError, match="one score, not score_8, score_16"):
        Format(".trec").write(path, [], scores(name="score_8") | scores(name="score_16"))
    with pytest.raises(ValueError, match="row 3 has no qid and docid"):
        Format(".trec").write(path, [row(3, qid="q")], scores(1))
    with pytest.raises(ValueError, match="the tag 'two words' is not one word"):
        Format(".trec", tag="two words")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.jsonl", Format(".jsonl")),
        ("gs://b/c.jsonl.zst", Format(".jsonl.zst")),
        ("b.parquet", Format(".parquet")),
        ("b.txt.gz", Format(".txt.gz")),
        ("b.run", Format(".run")),
        (".trec", Format(".trec")),
    ],
)
def test_the_suffix_says_what_an_output_is(name, expected):
    assert format_of(name) == expected


def test_settings_of_formats():
    schema = pa.schema({"id": pa.int8()})
    assert format_of("a.parquet", schema=schema) == Format(".parquet", schema)
    assert format_of("a.trec", tag="mine") == Format(".trec", tag="mine")


@pytest.mark.parametrize("name", ["a.csv", "jsonl", "parquet", "trec", "runs/run", "txt"])
def test_other_names_say_no_format(name):
    with pytest.raises(ValueError, match=rf"^{name}: outputs are \.jsonl, \.trec, \.run, \.txt .* or \.parquet"):
        format_of(name)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".trec"])
def test_sigmoids_near_one_stay_apart(tmp_path, suffix):
    near = 1 / (1 + np.exp(-np.array([19.0, 19.5, 20.0, 20.5])))
    assert len(set(near.astype(np.float32))) == 1
    path, output = str(tmp_path / f"a{suffix}"), format_of(suffix)
    output.write(path, [candidate("q", f"d{n}") for n in range(4)], {"score": near})
    if suffix == ".parquet":
        written = pq.read_table(path)["score"].to_pylist()
    else:
        lines = (tmp_path / f"a{suffix}").read_text().splitlines()
        written = [json.loads(line)["score"] if suffix == ".jsonl" else float(line.split()[4]) for line in lines]
    assert (written[::-1] if suffix == ".trec" else written) == near.tolist()
