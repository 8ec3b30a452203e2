"""TREC runs: which passages are reranked, and which errors come before scoring starts."""

import gzip
import json
import pickle

import pytest

from flax_rerank.jobs.rows import Reject, Row
from flax_rerank.jobs.sources import Limits, TrecSource, beir_files
from flax_rerank.jobs.sources.records import LIMITS

RUN = """\
q2 Q0 d1 1 9.5 bm25
q2 Q0 d2 2 8.5 bm25
q1 Q0 d1 1 1e-3 bm25

q2 Q0 d3 3 11 bm25
q1 Q0 d4 3 2 bm25
q1 Q0 d3 2 2 bm25
"""
QUERIES = "q1\tfirst\nq2\tsecond\nq3\tnot in the run\n"
CORPUS = [
    {"_id": "d1", "title": "One", "text": "text of one"},
    {"_id": "d2", "title": "", "text": "text of two", "metadata": {}},
    {"_id": "d3", "text": "text of three"},
    {"_id": "d4", "title": "Four", "text": ""},
    {"_id": "d5", "title": "not", "text": "needed"},
]


@pytest.fixture
def make(tmp_path):
    """A source of files with this content."""

    def make(
        run=RUN,
        queries=QUERIES,
        corpus=CORPUS,
        top_k=100,
        corpus_name="corpus.jsonl",
        queries_name="queries.tsv",
        limits=LIMITS,
    ):
        if not isinstance(corpus, str):
            corpus = "".join(json.dumps(document) + "\n" for document in corpus)
        paths = []
        for name, content in (("run.txt", run), (queries_name, queries), (corpus_name, corpus)):
            (tmp_path / name).write_bytes(content.encode())
            paths.append(str(tmp_path / name))
        return TrecSource(*paths, top_k, limits)

    return make


def rows_of(source, shards):
    return [row for shard in shards for row in source.read(shard)]


def ids(rows):
    return [(row.record["qid"], row.record["docid"]) for row in rows]


def test_queries_as_they_come_and_the_best_first(make):
    rows = rows_of(make(), make().shards(100))
    assert ids(rows) == [("q2", "d3"), ("q2", "d1"), ("q2", "d2"), ("q1", "d3"), ("q1", "d4"), ("q1", "d1")]
    assert rows[0] == Row(5, "second", "text of three", {"qid": "q2", "docid": "d3", "rank": 3, "run_score": 11.0})
    assert [row.passage for row in rows[1:3]] == ["One text of one", "text of two"]
    assert rows[4].passage == "Four"


def test_top_k_takes_the_best_of_each_query_and_needs_only_their_texts(make):
    source = make(corpus=CORPUS[:1] + CORPUS[2:3], top_k=1)
    assert ids(rows_of(source, source.shards(100))) == [("q2", "d3"), ("q1", "d3")]


@pytest.mark.parametrize(("size", "rows"), [(1, [3, 3]), (5, [3, 3]), (6, [6])])
def test_shards_have_whole_queries(make, size, rows):
    source = make()
    shards = source.shards(size)
    assert [shard.rows for shard in shards] == rows
    assert [shard.index for shard in shards] == list(range(len(rows)))
    copy = pickle.loads(pickle.dumps(source))
    assert rows_of(copy, reversed(shards)) == [row for shard in reversed(shards) for row in source.read(shard)]
    assert len(rows_of(copy, shards)) == 6


def test_an_empty_text_is_a_reject(make):
    source = make(corpus=[*CORPUS[:3], {"_id": "d4", "text": " "}])
    (reject,) = [row for row in rows_of(source, source.shards(100)) if isinstance(row, Reject)]
    assert reject == Reject(source.run, 6, "the passage is empty (query q1, passage d4)")


@pytest.mark.parametrize(
    ("name", "corpus"),
    [
        ("corpus.tsv", "d1\tone\nd2\ttwo\nd3\tthree\nd4\tfour\n"),
        ("corpus.tsv", "d1\tone\t\r\nd2\t\ttwo\r\nd3\tthree\t\r\nd4\t\tfour\r\n"),
        ("corpus.tsv", "id\ttext\ttitle\nd1\t\tone\nd2\ttwo\t\nd3\tthree\t\nd4\tfour\t\n"),
        ("corpus.tsv", "text\t_id\none\td1\ntwo\td2\nthree\td3\nfour\td4\n"),
    ],
)
def test_tables_of_texts(make, name, corpus):
    source = make(corpus=corpus, corpus_name=name)
    assert [row.passage for row in rows_of(source, source.shards(9))] == [
        "three",
        "one",
        "two",
        "three",
        "four",
        "one",
    ]


def test_titles_come_first_in_tables(make):
    corpus = "d1\tA\tb\nd2\tA\tb\nd3\tA\tb\nd4\tA\tb\n"
    source = make(corpus=corpus, corpus_name="corpus.tsv")
    assert {row.passage for row in rows_of(source, source.shards(9))} == {"A b"}


def test_a_beir_folder_and_compressed_files(make, tmp_path):
    source = make(queries='{"_id": "q1", "text": " a"}\n{"_id": "q2", "text": "b"}\n', queries_name="queries.jsonl")
    queries, corpus = beir_files(str(tmp_path))
    assert (queries, corpus) == (source.queries, source.corpus)
    (tmp_path / "run.txt.gz").write_bytes(gzip.compress(RUN.encode()))
    rows = rows_of(TrecSource(str(tmp_path / "run.txt.gz"), queries, corpus), source.shards(9))
    assert [row.query for row in rows] == ["b", "b", "b", " a", " a", " a"]
    with pytest.raises(FileNotFoundError, match=r"no queries\.jsonl in .*elsewhere"):
        beir_files(str(tmp_path / "elsewhere"))


@pytest.mark.parametrize(
    ("place", "change"), [(0, {"run": RUN + "\n"}), (1, {"queries": QUERIES + "\n"}), (2, {"corpus": CORPUS[:4]})]
)
def test_digests_are_those_of_all_files(make, place, change):
    same, changed = make().digests(), make(**change).digests()
    assert [before == after for before, after in zip(same, changed, strict=True)] == [n != place for n in range(3)]


def test_a_long_line_stops_and_a_long_text_is_rejected(make):
    with pytest.raises(ValueError, match=r"corpus\.jsonl:2: the line has more than 56 bytes \(max_line_bytes\)"):
        make(limits=Limits(56)).shards(10)
    source = make(limits=Limits(text_chars=14))
    (reject,) = {row for row in rows_of(source, source.shards(10)) if isinstance(row, Reject) and "q2" in row.reason}
    reason = "the passage has 15 characters, more than 14 (max_text_chars) (query q2, passage d1)"
    assert (reject.number, reject.reason) == (1, reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"run": "\n"}, r"run\.txt holds no rows"),
        (
            {"run": "q1 Q0 d1 1 1.0\n"},
            r"run\.txt:1: the number of columns is 5; it must be 6: qid Q0 docid rank score tag",
        ),
        ({"run": RUN + "q1 Q0 d5 1 nan t\n"}, r"run\.txt:8: rank 1 and score nan: they must be"),
        ({"run": "q1 Q0 d1 first 1.0 t\n"}, r"run\.txt:1: rank first and score 1\.0: they must be"),
        ({"run": RUN + "q2 Q0 d2 9 0 t\n"}, r"run\.txt:8: query 'q2' has 'd2' already, in line 2"),
        ({"queries": "q1\tfirst\n"}, r"queries\.tsv has no text for 1 query id of the run: 'q2' \(.*run\.txt:1\)"),
        ({"queries": "q1\tfirst\nq2\n"}, r"queries\.tsv:2: the number of columns is 1; it must be 2: id, text"),
        ({"queries": QUERIES + "q1\tagain\n"}, r"queries\.tsv:4: 'q1' has a text already, in line 1"),
        ({"queries": ""}, r"queries\.tsv holds no rows"),
        ({"queries_name": "queries.csv"}, r"queries\.csv: texts come from \.jsonl or \.tsv files"),
        (
            {"corpus": CORPUS[4:]},
            r"no text for 4 passage ids of the run: 'd1' \(.*:1\), 'd2' \(.*:2\), 'd3' \(.*:5\), \.\.\.$",
        ),
        ({"corpus": [*CORPUS, CORPUS[2]]}, r"corpus\.jsonl:6: 'd3' has a text already, in line 3"),
        ({"corpus": [{"_id": "d1"}]}, r'corpus\.jsonl:1: "text" is missing'),
        ({"corpus": [{"_id": 1, "text": "x"}]}, r'corpus\.jsonl:1: "_id" is not a string but int'),
        ({"corpus": [{"_id": "d1", "title": "\ud800", "text": ""}]}, r"corpus\.jsonl:1: 'utf-8' codec"),
        ({"corpus": '{"_id": "d1", \n'}, r"corpus\.jsonl:1: not JSON: Expecting"),
    ],
)
def test_what_is_wrong_is_named_before_scoring(make, change, reason):
    with pytest.raises(ValueError, match=reason):
        make(**change).shards(10)
