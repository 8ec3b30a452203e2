"""Input files of jobs: lines, tables and runs with anything in them."""

import gzip
import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_reranker import FakeReranker
from fuzzing import Outcome, attempt, damaged, json_values, texts
from hypothesis import strategies as st
from reference_cases import CASES

from flax_rerank import FlaxAutoReranker
from flax_rerank.jobs import JobOptions, score_files

records = st.fixed_dictionaries(
    {}, optional={"query": texts | json_values, "passage": texts | json_values, "n": json_values, "score": json_values}
)
lines = st.one_of(
    st.builds(lambda query, passage, more: {"query": query, "passage": passage, **more}, texts, texts, records),
    records,
    json_values,
).map(lambda value: json.dumps(value).encode())
odd_lines = st.one_of(
    st.binary(max_size=20),
    st.just(b"  "),
    st.just(b'{"query": "q", "passage": "p"}\r'),
    st.just(b"\xef\xbb\xbf" + b'{"query": "q", "passage": "p"}'),
    st.integers(1, 2000).map(
        lambda depth: b'{"query": "q", "passage": "p", "n": ' + b"[" * depth + b"]" * depth + b"}"
    ),
    st.integers(0, 4000).map(lambda size: json.dumps({"query": "q", "passage": "x" * size}).encode()),
)


@pytest.fixture
def score(tmp_path, monkeypatch):
    """`score(options)`: the rows that a job writes and those that it rejects, or None if it refuses the input."""
    monkeypatch.setattr(FlaxAutoReranker, "from_finetuned", lambda *args, **kwargs: FakeReranker())

    def score(suffix=".jsonl", **options):
        output = tmp_path / f"out{suffix}"
        job = JobOptions(output=output, shard_rows=3, overwrite=True, show_progress_bar=False, **options)
        _, refused = attempt(lambda: score_files(str(CASES / "encoder-bert"), job))
        if refused:
            assert str(tmp_path) in refused, refused
            return None
        rejects = Path(f"{output}.rejects.jsonl")
        if suffix == ".parquet":
            rows = pq.read_table(output).to_pylist()
        else:
            rows = [strict_json(line) for line in output.read_bytes().splitlines()]
        return rows, [strict_json(line) for line in rejects.read_bytes().splitlines()] if rejects.exists() else []

    return score


def strict_json(line):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(line, parse_constant=refuse)


def check_rows(result, count):
    """Whether each of `count` rows of the input has its score or its reason."""
    rows, rejects = result
    assert len(rows) + len(rejects) == count
    for row in rows:
        assert math.isclose(row["score"], len(row["query"]) + len(row["passage"]) / 7)
    assert all(reject["reason"] and reject["line"] >= 1 for reject in rejects)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_lines(fuzz, score, tmp_path, suffix):
    def check(content, end, compressed):
        path = tmp_path / ("pairs.jsonl.gz" if compressed else "pairs.jsonl")
        data = b"\n".join(line.replace(b"\n", b"") for line in content) + end
        path.write_bytes(gzip.compress(data, 1) if compressed else data)
        result = score(suffix, input=path, max_line_bytes=3000, max_text_chars=1000)
        if result is None:
            return Outcome.REFUSED
        check_rows(result, sum(not line.isspace() for line in data.split(b"\n") if line))
        return Outcome.RIGHT

    some = st.lists(st.one_of(lines, lines, odd_lines), max_size=8)
    fuzz(check, some, st.sampled_from([b"", b"\n"]), st.booleans(), examples=12)


def test_damaged_compression(fuzz, score, tmp_path):
    whole = b"".join(b'{"query": "q%d", "passage": "p"}\n' % n for n in range(50))

    def check(data):
        (tmp_path / "pairs.jsonl.gz").write_bytes(data)
        result = score(input=tmp_path / "pairs.jsonl.gz")
        if result is None:
            return Outcome.REFUSED
        if gzip.decompress(data) == whole:
            check_rows(result, 50)
        return Outcome.RIGHT

    fuzz(check, damaged(gzip.compress(whole, mtime=0)), examples=10)


KINDS = (
    *(pa.string(), pa.int8(), pa.float64(), pa.bool_(), pa.binary(), pa.date32(), pa.timestamp("ns"), pa.float16()),
    *(pa.duration("s"), pa.time64("ns"), pa.decimal128(9, 2), pa.list_(pa.int8()), pa.list_(pa.timestamp("us"))),
    *(
        pa.struct([("a", pa.string())]),
        pa.map_(pa.string(), pa.int8()),
        pa.null(),
        pa.dictionary(pa.int8(), pa.string()),
    ),
)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_tables(fuzz, score, tmp_path, suffix):
    names = st.lists(st.sampled_from(["id", "score", "query", "n", "é", ""]), max_size=2)

    def check(queries, passages, others, kinds, damage):
        count = min(len(queries), len(passages))
        columns = [pa.array(texts[:count], pa.string()) for texts in (queries, passages)]
        columns += [pa.nulls(count, kind) for kind in kinds[: len(others)]]
        table = pa.table(columns, names=["query", "passage", *others[: len(kinds)]])
        path = tmp_path / "pairs.parquet"
        pq.write_table(table, path, row_group_size=4, write_page_checksum=True)
        whole = path.read_bytes()
        if damage is not None:
            place, mask = damage
            data = bytearray(whole)
            data[place % len(data)] ^= mask
            path.write_bytes(data)
        result = score(suffix, input=path)
        if result is None:
            return Outcome.REFUSED
        check_rows(result, count)
        return Outcome.RIGHT

    sound = st.text(st.characters(codec="utf-8"), max_size=9)
    some = st.lists(st.none() | sound, max_size=9)
    damage = st.none() | st.tuples(st.integers(0, 10**6), st.integers(1, 255))
    kinds = st.lists(st.sampled_from(KINDS), min_size=2, max_size=2)
    fuzz(check, some, some, names, kinds, damage, examples=12)


def test_runs(fuzz, score, tmp_path):
    ids = st.sampled_from(["q1", "q2", "d1", "d2", "é", ""])
    run_lines = st.lists(
        st.builds(lambda *cells: " ".join(map(str, cells)), ids, ids, ids, st.integers(), st.floats(), ids)
        | st.builds("q1 Q0 {} 1 {} t".format, st.sampled_from(["d1", "d2"]), st.integers(0, 9))
        | texts,
        max_size=4,
    )
    text_lines = st.lists(
        st.builds(lambda name, text: json.dumps({"_id": name, "text": text}), ids | json_values, texts | json_values),
        max_size=2,
    )
    known = [json.dumps({"_id": name, "text": f"text of {name}"}) for name in ("q1", "q2", "d1", "d2")]

    def check(run, queries, corpus):
        paths = {"run": "run.trec", "queries": "queries.jsonl", "corpus": "corpus.jsonl"}
        for file, content in zip(paths.values(), (run, known + queries, known + corpus), strict=True):
            (tmp_path / file).write_bytes("\n".join(content).encode("utf-8", "surrogatepass"))
        result = score(**{name: tmp_path / file for name, file in paths.items()})
        if result is None:
            return Outcome.REFUSED
        rows, rejects = result
        assert len(rows) + len(rejects) == sum(bool(line.strip()) for line in "\n".join(run).split("\n"))
        return Outcome.RIGHT

    fuzz(check, run_lines, text_lines, text_lines, examples=8)
