"""Rows of every form, and rows at fault."""

import gzip
import json

import pyarrow as pa
import pytest

from flax_rerank.training.data import DataError
from flax_rerank.training.data.examples import Example, check
from flax_rerank.training.data.rows import FileRows, MemoryRows
from flax_rerank.training.data.sources import RowSource

FORMS = {
    "flag": (
        {"query": "q", "pos": ["a", "b"], "neg": ["c"], "pos_scores": [3, 2.5], "neg_scores": [-1], "prompt": "p",
         "query_prompt": None, "id": 7},
        Example("row 0", "q", ["a", "b", "c"], [1, 1, 0], [3, 2.5, -1], prompt="p"),
    ),
    "flag without negatives": ({"query": "q", "pos": ["a"]}, Example("row 0", "q", ["a"], [1])),
    "pair": ({"anchor": "q", "positive": "a"}, Example("row 0", "q", ["a"], [1])),
    "triplet": (
        {"query": "q", "positive": "a", "negative": "b"},
        Example("row 0", "q", ["a", "b"], [1, 0]),
    ),
    "several negatives": (
        {"anchor": "q", "positive": "a", "negative_1": "b", "negative_2": "c", "negative_3": None},
        Example("row 0", "q", ["a", "b", "c"], [1, 0, 0]),
    ),
    "list": (
        {"query": "q", "docs": ["a", "b"], "labels": [2, 0]},
        Example("row 0", "q", ["a", "b"], [2, 0], graded=True),
    ),
    "labelled": (
        {"sentence1": "q", "sentence2": "a", "score": 0.5},
        Example("row 0", "q", ["a"], [0.5], [0.5], graded=True),
    ),
    "labelled with a teacher": (
        {"query": "q", "passage": "a", "label": True, "score": 7.5},
        Example("row 0", "q", ["a"], [1], [7.5], graded=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_form(form):
    row, expected = FORMS[form]
    assert RowSource(MemoryRows([row]))[0] == expected


def test_labelled_rows_of_a_query_are_one_example():
    rows = [("q", "a", 1), ("r", "a", 1), ("q", "b", 0)]
    source = RowSource(MemoryRows([{"query": q, "passage": p, "label": label} for q, p, label in rows]))
    assert [(source[i].query, source[i].passages, source[i].labels) for i in range(len(source))] == [
        ("q", ["a", "b"], [1, 0]),
        ("r", ["a"], [1]),
    ]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_files(tmp_path, suffix):
    """Blank lines and a byte order mark are skipped; lines keep their numbers."""
    text = '\ufeff{"query": "ä", "positive": "a"}\n\n  \n{"query": "r", "positive": 5}'.encode()
    path = tmp_path / f"data.jsonl{suffix}"
    if suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as sink:
            sink.write(text)
    else:
        path.write_bytes(gzip.compress(text) if suffix else text)
    source = RowSource(FileRows(str(path)))
    assert len(source) == 2
    assert source[0] == Example(f"{path}:1", "ä", ["a"], [1])
    with pytest.raises(DataError, match=f'{path}:4: "positive" is a int; it must be a string'):
        source[1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": "q", "target": "a"},
            "the columns text, target are not those of one known form. Known are: query, p",
        ),
        ({"query": "q", "pos": "a", "neg": []}, '"pos" must be a list of strings'),
        ({"query": "q", "pos": ["a", None], "neg": []}, '"pos" must be a list of strings'),
        ({"query": "q", "pos": ["a"], "pos_scores": [1, 2]}, '"pos_scores" has 2 scores, "pos" has 1 passages'),
        ({"query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": [1]}, '"neg_scores" is missing'),
        ({"query": "q", "pos": ["a"], "pos_scores": [float("nan")]}, '"pos_scores" must be a list of finite numbers'),
        ({"query": "q", "docs": ["a", "b"], "labels": [1]}, "there are 1 labels for 2 passages"),
        ({"query": "q", "passage": "a", "label": "1"}, "\"label\" is '1'; it must be a finite number"),
        ({"query": "q", "anchor": "r", "positive": "a"}, "query and anchor are given; keep one"),
    ],
)
def test_rows_of_no_form(row, message):
    with pytest.raises(DataError) as error:
        RowSource(MemoryRows([row]))[0]
    assert str(error.value).startswith(f"row 0: {message}")


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file(tmp_path, content):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} holds no rows"):
        FileRows(str(path))


def test_a_line_that_is_not_json(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"query": "q", "positive": "a"}) + "\n{'query'}\n")
    with pytest.raises(DataError, match=f"{path}:2: not JSON"):
        RowSource(FileRows(str(path)))[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"passages": [], "labels": []}, "the group is empty"),
        ({"query": " "}, "the query is empty"),
        ({"passages": ["a", ""]}, "the passage is empty"),
        ({"passages": ["a", "\ud800"]}, "the passage holds a lone surrogate"),
        ({"labels": [1.5, 0]}, "the label 1.5 is not between 0 and 1"),
        ({"labels": [1, -1]}, "the label -1 is not between 0 and 1"),
        ({"labels": [0, 0]}, "the query has no positive passage"),
        ({"passages": ["a", "a"]}, "a positive is a negative of the same query too: 'a'"),
        ({"teacher": None}, "teacher scores are missing"),
    ],
)
def test_examples_at_fault(change, message):
    fields = {"where": "file:3", "query": "q", "passages": ["a", "b"], "labels": [1, 0], "teacher": [2, 1]}
    with pytest.raises(DataError) as error:
        check(Example(**fields | change), teacher=True, max_label=1.0, positive=True)
    assert str(error.value).startswith(f"file:3: {message}")
