"""`flax-rerank convert` and `flax-rerank score`, on the reference cases."""

import dataclasses
import gzip
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from reference_cases import CASES, largest_difference, load_case

from flax_rerank import FlaxAutoReranker
from flax_rerank.cli import main
from flax_rerank.saving import flax_checkpoint as saving

ROOT = CASES.parents[1]
BERT = CASES / "encoder-bert"
PAIRS = 5  # of a case
ONE_DEVICE = ["--devices", "cpu:0", "--no-progress"]
yes_in_pieces = pytest.mark.filterwarnings("ignore:'Yes' is")
CLASS_OPTIONS = {
    "--cutoff-layers": "2",
    "--compress-layers": "1",
    "--compress-ratio": "2",
    "--head-index": "layer",
    "--prompt": "Yes?",
    "--peft-path": str(CASES / "lora-llama" / "adapter"),
}


def write_lines(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def write_pairs(path, pairs):
    records = [{"id": i, "query": query, "meta": {"n": [i, None]}, "passage": p} for i, (query, p) in enumerate(pairs)]
    return write_lines(path, [json.dumps(record, ensure_ascii=False) for record in records])


def read_records(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def read_compressed(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def sound(case):
    """The first short pairs of a case without an empty text, and where they stand in it. They fit into one step."""
    short = [len(ids) <= 128 for ids in case.runs[0]["input_ids"]]
    places = [place for place, pair in enumerate(case.pairs) if short[place] and all(map(str.strip, pair))][:PAIRS]
    return places, [case.pairs[place] for place in places]


def score(model, source, target, *options):
    command = ["score", "--model", str(model), "--input", str(source), "--output", str(target)]
    return main([*command, *ONE_DEVICE, *options])


@pytest.fixture
def bert(reranker, monkeypatch):
    """Every model name loads the same reranker, which is there already; `loads` has the arguments of each load."""
    model = reranker("encoder-bert")
    loads = []
    monkeypatch.setattr(FlaxAutoReranker, "from_finetuned", lambda *args, **kwargs: loads.append(kwargs) or model)
    monkeypatch.setattr(model, "loads", loads, raising=False)
    return model


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model fails."""

    def loaded(*args, **kwargs):
        raise AssertionError("it loaded the model")

    monkeypatch.setattr(FlaxAutoReranker, "from_finetuned", loaded)


@yes_in_pieces
@pytest.mark.parametrize(
    ("name", "run", "options"),
    [
        ("encoder-bert", 1, ["--max-length", "64", "--normalize"]),
        ("encoder-xlmr", 2, ["--max-length", "64", "--query-max-length", "16", "--batch-size", "3"]),
        ("decoder-gemma", 2, ["--prompt", "Is B relevant to A? Answer 'Yes' or 'No'.", "--normalize"]),
        ("decoder-gemma", 3, ["--query-instruction", "query: ", "--passage-instruction", "doc: "]),
        (
            "lightweight-gemma2",
            3,
            ["--cutoff-layers", "6", "--compress-ratio", "4", "--compress-layers", "1", "3"],
        ),
    ],
)
def test_scores_equal_the_reference(tmp_path, name, run, options):
    case = load_case(name)
    places, pairs = sound(case)
    source, target = write_pairs(tmp_path / "pairs.jsonl", pairs), tmp_path / "new" / "scores.jsonl"
    assert score(case.folder, source, target, *options) == 0
    records = read_records(target)
    scores = [record.pop("score") for record in records]
    assert case.error(run, scores, places) <= case.allowed_error(run)
    assert records == read_records(source)


def test_several_cutoff_layers_give_a_field_each(tmp_path):
    case = load_case("layerwise-minicpm")
    places, pairs = sound(case)
    source, target = write_pairs(tmp_path / "pairs.jsonl", pairs), tmp_path / "scores.jsonl"
    assert score(case.folder, source, target, "--cutoff-layers", "2", "4", "6") == 0
    records = read_records(target)
    assert list(records[0]) == ["id", "query", "meta", "passage", "score_2", "score_4", "score_6"]
    scores = [[record[f"score_{layer}"] for record in records] for layer in (2, 4, 6)]
    assert case.error(2, scores, places) <= case.allowed_error(2)


@yes_in_pieces
@pytest.mark.parametrize("name", ["encoder-bert", "decoder-llama", "layerwise-minicpm"])
def test_a_converted_checkpoint_scores_the_same(tmp_path, capsys, name):
    folder = tmp_path / "made" / name
    assert main(["convert", str(CASES / name), str(folder)]) == 0
    printed = capsys.readouterr().out
    count, size = re.search(r"([\d,]+) parameters in float32, ([\d,]+) bytes", printed).groups()
    assert int(size.replace(",", "")) == 4 * int(count.replace(",", ""))
    assert not [file for file in folder.rglob("*") if file.suffix in (".safetensors", ".bin")]

    source = write_pairs(tmp_path / "pairs.jsonl", sound(load_case(name))[1])
    assert score(CASES / name, source, tmp_path / "torch.jsonl", "--max-length", "64") == 0
    assert score(folder, source, tmp_path / "flax.jsonl", "--max-length", "64") == 0
    assert (tmp_path / "torch.jsonl").read_bytes() == (tmp_path / "flax.jsonl").read_bytes()


def test_convert_to_bfloat16_halves_the_weights(tmp_path, capsys):
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        assert main(["convert", str(CASES / "encoder-bert"), str(tmp_path / dtype), "--dtype", dtype]) == 0
        assert f"parameters in {dtype}" in capsys.readouterr().out
        sizes[dtype] = sum(file.stat().st_size for file in (tmp_path / dtype / "params").rglob("*") if file.is_file())
    assert sizes["bfloat16"] < 0.75 * sizes["float32"]


def test_scripts_convert_and_score(tmp_path):
    def run(script, *options):
        command = [sys.executable, str(ROOT / "scripts" / script), *map(str, options)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    case = load_case("encoder-bert")
    places, pairs = sound(case)
    source = write_pairs(tmp_path / "pairs.jsonl", pairs)
    converted = run("convert.py", case.folder, "made")
    assert (converted.returncode, converted.stdout.startswith("made: FlaxReranker, ")) == (0, True)
    scored = run("score.py", "--model", "made", "--input", source, "--output", "-", "--devices", "cpu:0")
    assert scored.returncode == 0
    assert f"{PAIRS} pairs in " in scored.stderr
    scores = [json.loads(line)["score"] for line in scored.stdout.splitlines()]
    assert case.error(0, scores, places) <= case.allowed_error(0)


BAD = [
    (b"{'query': 1}", "not JSON: Expecting"),
    (b"[" * 100_000, "not JSON: "),
    (b'["query", "passage"]', "not a JSON object but list"),
    (b'{"query": "a"}', '"passage" is missing'),
    (b'{"passage": "a"}', '"query" is missing'),
    (b'{"query": "a", "passage": null}', '"passage" is null'),
    (b'{"query": 7, "passage": "a"}', '"query" is not a string but int'),
    (b'{"query": "a", "passage": " "}', "the passage is empty"),
    (b'{"query": "a\\ud800", "passage": "b"}', "the query holds a lone surrogate"),
    (b'{"query": "\xff", "passage": "b"}', "not JSON: 'utf-8' codec"),
    (json.dumps({"query": "panda " * 600, "passage": "b"}).encode(), "no token of the passage is left"),
]
GOOD = b'{"query": "a", "passage": "b"}'


@pytest.mark.parametrize("shard_rows", ["2", "100"])
def test_bad_lines_go_to_the_rejects_with_their_reasons(tmp_path, bert, capsys, monkeypatch, shard_rows):
    monkeypatch.setattr(bert, "settings", dataclasses.replace(bert.settings, query_max_length=600))
    source, target = tmp_path / "pairs.jsonl", tmp_path / "scores.jsonl"
    source.write_bytes(b"\n".join([line for bad, _ in BAD for line in (bad, GOOD)]) + b"\n\n")
    assert score(BERT, source, target, "--shard-rows", shard_rows) == 0
    rejects = read_records(f"{target}.rejects.jsonl")
    assert [(reject["file"], reject["line"]) for reject in rejects] == [
        (str(source), 2 * n + 1) for n in range(len(BAD))
    ]
    for reject, (_, reason) in zip(rejects, BAD, strict=True):
        assert reason in reject["reason"]
    assert [record["query"] for record in read_records(target)] == ["a"] * len(BAD)
    assert f" {len(BAD)} rejected, " in capsys.readouterr().err


@pytest.mark.parametrize(("bad", "reason"), [BAD[0], BAD[3], BAD[-1]])
def test_strict_stops_at_the_first_bad_line(tmp_path, bert, capsys, monkeypatch, bad, reason):
    monkeypatch.setattr(bert, "settings", dataclasses.replace(bert.settings, query_max_length=600))
    source, target = tmp_path / "pairs.jsonl", tmp_path / "scores.jsonl"
    source.write_bytes(b"\n".join([GOOD, b"", bad, GOOD, b"no JSON either"]))
    assert score(BERT, source, target, "--strict") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"flax-rerank: {source}:3: ")
    assert reason in error
    assert not target.exists()
    assert score(BERT, source, target) == 0
    assert len(read_records(target)) == 2
    assert [reject["line"] for reject in read_records(f"{target}.rejects.jsonl")] == [3, 5]


def test_a_first_line_that_is_no_json_is_named(tmp_path, bert, capsys):
    source = write_lines(tmp_path / "pairs.jsonl", ["query,passage", GOOD.decode()])
    assert score(BERT, source, tmp_path / "scores.jsonl", "--strict") == 1
    assert capsys.readouterr().err.startswith(f"flax-rerank: {source}:1: not JSON: ")


def test_a_score_that_is_not_finite_names_its_line(tmp_path, bert, capsys, monkeypatch):
    def fails(prepared, **options):
        output = finite(prepared, **options)
        return replace(output, scores=np.where(np.arange(len(output.scores)) == 2, np.float32(np.nan), output.scores))

    finite = bert.run
    monkeypatch.setattr(bert, "run", fails)
    source, target = write_pairs(tmp_path / "pairs.jsonl", [(q, "b") for q in "abcd"]), tmp_path / "scores.jsonl"
    assert score(BERT, source, target, "--strict") == 1
    assert capsys.readouterr().err == f"flax-rerank: {source}:3: its score is not finite\n"
    assert score(BERT, source, target) == 0
    assert [record["query"] for record in read_records(target)] == ["a", "b", "d"]
    assert [reject["line"] for reject in read_records(f"{target}.rejects.jsonl")] == [3]


def test_shards_do_not_change_the_scores(tmp_path, bert):
    source = write_pairs(tmp_path / "pairs.jsonl", sound(load_case("encoder-bert"))[1] * 2)
    scores = {}
    for size in ("3", "10", "10000"):
        target = tmp_path / f"{size}.jsonl"
        assert score(BERT, source, target, "--shard-rows", size) == 0
        assert [record["id"] for record in read_records(target)] == list(range(10))
        scores[size] = [record["score"] for record in read_records(target)]
    assert largest_difference(scores["3"], scores["10000"]) <= 1e-5
    assert scores["10"] == scores["10000"]


def test_the_summary_counts_all_shards(tmp_path, bert, capsys):
    pairs = sound(load_case("encoder-bert"))[1]
    source, target = write_pairs(tmp_path / "pairs.jsonl", pairs), tmp_path / "scores.jsonl"
    assert score(BERT, source, target, "--shard-rows", "2") == 0
    expected = bert.score(pairs, show_progress_bar=False)
    summary = json.loads(Path(f"{target}.summary.json").read_text())
    assert (summary["rows"], summary["rejects"], summary["shards"]) == (PAIRS, 0, 3)
    assert summary["tokens"] == expected.tokens.sum()
    assert summary["truncated"] == expected.truncated.sum()
    computed = summary["computed_tokens"]
    assert summary["padding_share"] == pytest.approx(1 - expected.tokens.sum() / computed)
    assert summary["devices"] == ["1 x cpu"]
    printed = capsys.readouterr().err
    assert f"{PAIRS} pairs in " in printed
    assert f" {summary['padding_share']:.1%} padding, {summary['truncated']} truncated, 0 rejected, " in printed
    assert printed.endswith(f" {len(summary['shapes'])} shapes\n")


def test_other_fields_come_back_as_they_were(tmp_path, bert):
    line = (
        '{"query": "a", "passage": "b", "id": "x\\ud800", "text": "日本", "score": "old", "big": 12345678901234567890}'
    )
    source = write_lines(tmp_path / "pairs.jsonl", [line])
    assert score(BERT, source, tmp_path / "scores.jsonl") == 0
    (record,) = read_records(tmp_path / "scores.jsonl")
    assert record == json.loads(line) | {"score": pytest.approx(bert.compute_score([("a", "b")])[0], abs=1e-6)}
    assert "日本" in (tmp_path / "scores.jsonl").read_text(encoding="utf-8")


# A second start


def test_a_finished_job_is_not_done_again(tmp_path, bert, capsys, caplog):
    source = write_pairs(tmp_path / "pairs.jsonl", [("a", "b")])
    for target in (tmp_path / "scores.jsonl", tmp_path / "folder"):
        bert.loads.clear()
        assert score(BERT, source, target) == 0
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert score(BERT, source, target) == 0
        assert len(bert.loads) == 1
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        first, second = capsys.readouterr().err.splitlines()[-2:]
        assert first == second
    assert "scores.jsonl is complete already" in caplog.text
    assert "1 of 1 shards are finished already" in caplog.text


@pytest.mark.parametrize("name", ["scores.jsonl", "folder"])
def test_another_job_is_refused_with_what_differs(tmp_path, bert, capsys, name):
    source, target = write_pairs(tmp_path / "pairs.jsonl", [("a", "b")]), tmp_path / name
    assert score(BERT, source, target) == 0
    bert.loads.clear()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for options, reason in (
        (["--max-length", "64", "--normalize"], "max_length is not given there and 64 here; normalize is "),
        (["--shard-rows", "7"], "shard_rows is 10000 there and 7 here"),
        (["--passage-field", "query"], 'passage_field is "passage" there and "query" here'),
    ):
        assert score(BERT, source, target, *options) == 1
        error = capsys.readouterr().err
        assert str(target) in error
        assert reason in error
        assert "overwrite to start over" in error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    write_pairs(tmp_path / "pairs.jsonl", [("c", "d")])
    assert score(BERT, source, target) == 1
    assert f"input file {source} was changed" in capsys.readouterr().err
    assert bert.loads == []
    assert score(BERT, source, target, "--overwrite", "--max-length", "64") == 0
    (made,) = (tmp_path / "folder" / "parts").iterdir() if name == "folder" else [target]
    assert [record["query"] for record in read_records(made)] == ["c"]
    assert [load["max_length"] for load in bert.loads] == [64]


def test_an_output_that_exists_is_replaced_only_if_asked(tmp_path, bert, capsys):
    source = write_pairs(tmp_path / "pairs.jsonl", [("a", "b")])
    target = tmp_path / "scores.jsonl"
    target.write_text("precious")
    assert score(BERT, source, target) == 1
    assert f"{target} exists. Give another output" in capsys.readouterr().err
    assert target.read_text() == "precious"
    assert score(BERT, source, target, "--overwrite") == 0
    assert [record["id"] for record in read_records(target)] == [0]


def test_processes_by_hand_share_a_folder(tmp_path, bert, capsys):
    pairs = sound(load_case("encoder-bert"))[1]
    source = write_pairs(tmp_path / "pairs.jsonl", pairs)
    alone, folder = tmp_path / "alone.jsonl", tmp_path / "folder"
    assert score(BERT, source, alone, "--shard-rows", "2") == 0
    capsys.readouterr()
    for index, name in (("1", "part-00001.jsonl"), ("0", "part-00002.jsonl")):
        assert not (folder / "parts" / name).exists()
        assert not (folder / "summary.json").exists()
        assert score(BERT, source, folder, "--shard-rows", "2", "--num-shards", "2", "--shard-index", index) == 0
        assert ("other processes have not finished their shards yet" in capsys.readouterr().err) == (index == "1")
    parts = sorted((folder / "parts").iterdir())
    assert [part.name for part in parts] == ["part-00000.jsonl", "part-00001.jsonl", "part-00002.jsonl"]
    assert b"".join(part.read_bytes() for part in parts) == alone.read_bytes()
    assert json.loads((folder / "summary.json").read_text())["rows"] == PAIRS


# Inputs and outputs of other kinds


def write_run(folder, run):
    """A run, and a BEIR folder with the texts of queries q1, q2 and passages d1, d2, d3."""
    folder.mkdir(exist_ok=True)
    write_lines(folder / "queries.jsonl", [json.dumps({"_id": f"q{n}", "text": f"query {n}"}) for n in (1, 2)])
    documents = [{"_id": f"d{n}", "title": "panda", "text": "bear " * n} for n in (1, 2, 3)]
    write_lines(folder / "corpus.jsonl", map(json.dumps, documents))
    return write_lines(folder / "bm25.txt", run)


RUN = [f"{qid} Q0 {docid} {rank} {9 - rank}.5 bm25" for qid in ("q2", "q1") for rank, docid in enumerate(("d1", "d3"))]


def rerank(run, target, *options):
    command = ["score", "--model", str(BERT), "--run", run, "--output", str(target), *ONE_DEVICE]
    return main([*command, *options])


def test_a_run_is_reranked(tmp_path, bert, capsys):
    run = write_run(tmp_path / "beir", [*RUN, "q1 Q0 d2 9 0.1 bm25"])
    beir, target = ["--beir", str(tmp_path / "beir")], tmp_path / "scores.trec"
    assert rerank(run, target, *beir, "--top-k", "2", "--tag", "mine") == 0
    lines = [line.split() for line in target.read_text().splitlines()]
    ids = [(qid, docid) for qid in ("q2", "q1") for docid in ("d1", "d3")]
    pairs = [(f"query {qid[1]}", "panda " + "bear " * int(docid[1])) for qid, docid in ids]
    scores = dict(zip(ids, bert.compute_score([(q, p.strip()) for q, p in pairs]), strict=True))
    assert [line[0] for line in lines] == ["q2", "q2", "q1", "q1"]
    assert [(line[1], line[3], line[5]) for line in lines] == [("Q0", rank, "mine") for rank in "1212"]
    for above, below in (lines[:2], lines[2:]):
        assert float(above[4]) >= float(below[4])
        assert {above[2], below[2]} == {"d1", "d3"}
    assert largest_difference([float(line[4]) for line in lines], [scores[line[0], line[2]] for line in lines]) <= 1e-5

    assert rerank(run, tmp_path / "scores.jsonl.gz", *beir, "--top-k", "2") == 0
    records = read_compressed(tmp_path / "scores.jsonl.gz")
    assert [(record["qid"], record["docid"], record["rank"]) for record in records] == [
        (*pair, rank) for pair, rank in zip(ids, (0, 1, 0, 1), strict=True)
    ]
    assert {(line[0], line[2], float(line[4])) for line in lines} == {
        (record["qid"], record["docid"], record["score"]) for record in records
    }

    capsys.readouterr()
    texts = [
        "--queries",
        str(tmp_path / "beir" / "queries.jsonl"),
        "--corpus",
        str(tmp_path / "beir" / "corpus.jsonl"),
    ]
    assert rerank(run, "-", *texts, "--top-k", "2", "--tag", "mine") == 0
    assert capsys.readouterr().out == target.read_text()


def test_parquet_comes_back_as_parquet(tmp_path, bert):
    columns = {"q": ["a", "b", None], "p": ["c", "d", "e"], "n": pa.array([1, 2, 3], pa.int16())}
    source, target = tmp_path / "pairs.parquet", tmp_path / "scores.parquet"
    pq.write_table(pa.table(columns), source)
    assert score(BERT, source, target, "--query-field", "q", "--passage-field", "p") == 0
    table = pq.read_table(target)
    assert table.schema.names == ["q", "p", "n", "score"]
    assert (table.schema.field("n").type, table.schema.field("score").type) == (pa.int16(), pa.float64())
    assert table.select(["q", "p", "n"]).to_pylist() == pa.table(columns).slice(0, 2).to_pylist()
    assert largest_difference(table["score"], bert.compute_score([("a", "c"), ("b", "d")])) <= 1e-5
    (reject,) = read_records(f"{target}.rejects.jsonl")
    assert reject == {"file": str(source), "line": 3, "reason": '"q" is null'}


def test_compressed_lines_and_several_files(tmp_path, bert):
    for number, name in enumerate(("a.jsonl.gz", "b.jsonl.gz")):
        with gzip.open(tmp_path / name, "wt") as file:
            file.write(json.dumps({"query": "a", "passage": f"passage {number}"}) + "\n")
    assert score(BERT, tmp_path / "*.jsonl.gz", tmp_path / "folder", "--format", "jsonl.gz") == 0
    parts = sorted((tmp_path / "folder" / "parts").iterdir())
    assert [part.name for part in parts] == ["part-00000.jsonl.gz", "part-00001.jsonl.gz"]
    records = [record for part in parts for record in read_compressed(part)]
    assert [record["passage"] for record in records] == ["passage 0", "passage 1"]
    expected = bert.compute_score([("a", record["passage"]) for record in records])
    assert largest_difference([record["score"] for record in records], expected) <= 1e-5


def test_standard_input_and_output(tmp_path, bert, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(GOOD + b"\nbad\n")))
    assert score(BERT, "-", "-") == 0
    printed = capsys.readouterr()
    (record,) = map(json.loads, printed.out.splitlines())
    assert record == json.loads(GOOD) | {"score": pytest.approx(bert.compute_score([("a", "b")])[0], abs=1e-6)}
    (reject,) = (json.loads(line) for line in printed.err.splitlines() if line.startswith("{"))
    assert reject["line"] == 2
    assert list(tmp_path.iterdir()) == []


# Devices and compiling


@pytest.fixture
def compile_cache_of_the_tests():
    """Put JAX's cache back to what it was."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


def test_compiled_programs_are_kept_for_the_next_start(tmp_path, compile_cache_of_the_tests):
    source, target = write_pairs(tmp_path / "pairs.jsonl", [("a", "b")]), tmp_path / "scores.jsonl"
    cache = tmp_path / "cache"
    options = ["--warmup", "--compile-cache", str(cache), "--max-length", "32"]
    assert score(BERT, source, target, *options) == 0
    assert jax.config.jax_compilation_cache_dir == str(cache)
    assert json.loads(Path(f"{target}.summary.json").read_text())["seconds"]["warmup"] > 0
    programs, scores = sorted(cache.glob("*-cache")), target.read_bytes()
    assert [program for program in programs if program.name.startswith("jit_step-")]
    assert score(BERT, source, target, *options, "--overwrite") == 0
    assert sorted(cache.glob("*-cache")) == programs
    assert target.read_bytes() == scores


def test_a_model_may_be_split_over_devices(tmp_path):
    case = load_case("encoder-bert")
    source, target = write_pairs(tmp_path / "pairs.jsonl", case.pairs[:2]), tmp_path / "scores.jsonl"
    command = ["score", "--model", str(BERT), "--input", source, "--output", str(target), "--mesh"]
    assert main([*command, "data=4,model=2", "--replicate", "vocab"]) == 0
    assert case.error(0, [r["score"] for r in read_records(target)], slice(2)) <= case.allowed_error(0)
    assert json.loads(Path(f"{target}.summary.json").read_text())["devices"] == ["8 x cpu"]


def test_a_mesh_that_takes_other_devices_is_refused(tmp_path, capsys):
    source = write_pairs(tmp_path / "pairs.jsonl", [("a", "b")])
    assert score(BERT, source, tmp_path / "scores.jsonl", "--mesh", "data=4,model=2") == 1
    assert "mesh data=4,model=2 takes 8 devices; there are 1" in capsys.readouterr().err
    assert not (tmp_path / "scores.jsonl").exists()


# What is refused before the model is loaded


def empty(path):
    path.write_bytes(b"\n \n")


def missing(path):
    pass


def damaged(path):
    path.write_bytes(gzip.compress(GOOD)[:-4])


def no_parquet(path):
    path.write_bytes(GOOD)


def no_column(path):
    pq.write_table(pa.table({"query": ["a"], "text": ["b"]}), path)


def no_strings(path):
    pq.write_table(pa.table({"query": ["a"], "passage": [1]}), path)


def no_rows(path):
    pq.write_table(pa.table({"query": pa.array([], pa.string()), "passage": pa.array([], pa.string())}), path)


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("pairs.jsonl", empty, "holds no rows"),
        ("pairs.jsonl", missing, "No such file"),
        ("pairs.jsonl", Path.mkdir, "Is a directory"),
        ("pairs", Path.mkdir, "is a directory, not a file"),
        ("pairs.csv", empty, ": inputs are .jsonl, "),
        ("pairs.jsonl.gz", damaged, "cannot be decompressed"),
        ("*.jsonl", missing, "no file matches "),
        ("pairs.parquet", missing, "No such file"),
        ("pairs.parquet", no_parquet, "Parquet"),
        ("pairs.parquet", no_column, 'has no column "passage", only query, text'),
        ("pairs.parquet", no_strings, 'the column "passage" holds int64, not strings'),
        ("pairs.parquet", no_rows, "holds no rows"),
    ],
)
def test_a_bad_input_is_named(tmp_path, no_model, capsys, name, make, reason):
    make(tmp_path / name)
    assert score(BERT, tmp_path / name, tmp_path / "scores.jsonl") == 1
    error = capsys.readouterr().err
    assert str(tmp_path / name) in error
    assert reason in error
    assert not (tmp_path / "scores.jsonl").exists()


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        ([RUN[0], "q1 Q0 d1 1 1.0"], "bm25.txt:2: the number of columns is 5; it must be 6"),
        ([*RUN, "q2 Q0 d3 3 0 bm25"], "bm25.txt:5: query 'q2' has 'd3' already, in line 2"),
        ([*RUN, "q7 Q0 d1 1 1 bm25"], "bm25.txt:5)"),
        ([*RUN, "q1 Q0 d7 1 1 bm25"], "bm25.txt:5)"),
        ([], "bm25.txt holds no rows"),
    ],
)
def test_a_bad_run_is_named(tmp_path, no_model, capsys, run, reason):
    beir = tmp_path / "beir"
    assert rerank(write_run(beir, run), tmp_path / "scores.trec", "--beir", str(beir)) == 1
    error = capsys.readouterr().err
    assert f"{beir}/" in error
    assert reason in error
    assert not (tmp_path / "scores.trec").exists()


def test_a_bad_place_for_the_output_is_named(tmp_path, no_model, capsys):
    source = write_pairs(tmp_path / "pairs.jsonl", [("a", "b")])
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "file").write_text("precious")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "thesis.tex").write_text("precious")
    for name, reason in (
        ("folder.jsonl", "is a directory, not a file"),
        ("file", "is a file whose name has no known suffix"),
        ("others", "is not the folder of a job: it holds thesis.tex"),
    ):
        assert score(BERT, source, tmp_path / name, "--overwrite") == 1
        assert f"{tmp_path / name} {reason}" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == (tmp_path / "others" / "thesis.tex").read_text() == "precious"


def test_input_and_output_must_differ(tmp_path, no_model, capsys):
    source = write_pairs(tmp_path / "pairs.jsonl", [("a", "b")])
    before = Path(source).read_bytes()
    (tmp_path / "link").symlink_to(source)
    assert score(BERT, source, tmp_path / "link", "--overwrite") == 1
    assert "input and output are the same file" in capsys.readouterr().err
    assert Path(source).read_bytes() == before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("", "give input (pairs) or run (a TREC run to rerank)"),
        ("--input FILE --run FILE", "and not both"),
        ("--input FILE --beir FILE", "belong to a run"),
        ("--run FILE", "a run needs its texts"),
        ("--run FILE --queries FILE", "a run needs its texts"),
        ("--run FILE --beir FILE --queries FILE --corpus FILE", "a run needs its texts"),
        ("--run FILE --beir nowhere", "no queries.jsonl in nowhere"),
        ("--input - FILE", "standard input (-) cannot be combined with other files"),
        ("--input FILE a.parquet", "have different formats"),
        ("--input FILE --output o.jsonl --format parquet", "the suffix of o.jsonl says the format"),
        ("--input FILE --output o.trec", "o.trec: pairs cannot be written as a TREC run"),
        ("--input FILE --output o.jsonl --num-shards 2 --shard-index 0", "2 processes cannot write one file"),
        ("--input FILE --num-shards 2 --shard-index 0 --overwrite", "2 processes cannot start over together"),
        ("--input FILE --num-shards 2", "num_shards and shard_index go together"),
        ("--input FILE --num-shards 2 --shard-index 2", "from 0 to num_shards - 1"),
        ("--input FILE --num-shards 2 --shard-index 0 --distributed", "and not both"),
        ("--input FILE --engine ray --num-shards 2 --shard-index 0", "Ray distributes the shards"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path, no_model, capsys, monkeypatch, options, reason):
    monkeypatch.chdir(tmp_path)
    source = write_pairs(tmp_path / "pairs.jsonl", [("a", "b")])
    command = ["score", "--model", str(BERT), "--output", "folder", *options.replace("FILE", source).split()]
    assert main(command) == 1
    assert reason in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_a_run_has_one_score(tmp_path, no_model, capsys):
    run = write_run(tmp_path / "beir", RUN)
    options = ["--beir", str(tmp_path / "beir"), "--cutoff-layers", "1", "2"]
    assert rerank(run, tmp_path / "scores.trec", *options) == 1
    assert "give one of the 2 cutoff_layers" in capsys.readouterr().err


@pytest.mark.parametrize("option", CLASS_OPTIONS)
def test_an_option_that_the_class_does_not_have_is_refused(tmp_path, capsys, option):
    source, target = write_pairs(tmp_path / "pairs.jsonl", [("a", "b")]), tmp_path / "scores.jsonl"
    assert score(CASES / "encoder-bert", source, target, option, CLASS_OPTIONS[option]) == 1
    assert f"{option} is not an option for " in capsys.readouterr().err
    assert not target.exists()


def test_a_value_that_the_model_refuses_leaves_the_old_output(tmp_path, capsys):
    source, target = write_pairs(tmp_path / "pairs.jsonl", [("a", "b")]), tmp_path / "scores.jsonl"
    target.write_text("old")
    assert score(CASES / "layerwise-minicpm", source, target, "--overwrite", "--cutoff-layers", "99") == 1
    assert "cutoff_layers [99]" in capsys.readouterr().err
    assert target.read_text() == "old"


def test_numbers_below_one_are_refused(tmp_path, capsys):
    for name in ("shard_rows", "top_k", "num_shards", "num_processes", "ray_actors"):
        assert score("any", "in", tmp_path / "out", "--" + name.replace("_", "-"), "0") == 1
        assert f"{name} is 0; it must be at least 1" in capsys.readouterr().err


def test_debug_lets_the_error_through(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        score("any", tmp_path / "nowhere.jsonl", tmp_path / "out", "--debug")


def test_an_error_of_the_program_propagates(tmp_path, bert, monkeypatch):
    def broken(prepared, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(bert, "run", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        score(BERT, write_pairs(tmp_path / "pairs.jsonl", [("a", "b")]), tmp_path / "out")


def test_convert_refuses_a_folder_that_exists_before_it_loads(tmp_path, capsys, monkeypatch):
    def loaded(*args, **kwargs):
        raise AssertionError("it loaded the model")

    out = tmp_path / "made"
    assert main(["convert", str(CASES / "encoder-bert"), str(out)]) == 0
    (out / "tokenizer.json").write_text("kept")
    with monkeypatch.context() as patched:
        patched.setattr(FlaxAutoReranker, "from_finetuned", loaded)
        assert main(["convert", str(CASES / "encoder-bert"), str(out)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "tokenizer.json").read_text() == "kept"
    assert main(["convert", str(CASES / "encoder-bert"), str(out), "--overwrite"]) == 0
    assert (out / "tokenizer.json").read_text() != "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("out", ["models/bert", "models"])
def test_convert_does_not_replace_its_source(tmp_path, capsys, out):
    source = tmp_path / "models" / "bert"
    shutil.copytree(CASES / "encoder-bert", source)
    before = sorted(file.name for file in source.iterdir())
    assert main(["convert", str(source), str(tmp_path / out), "--overwrite"]) == 1
    assert "holds the source" in capsys.readouterr().err
    assert sorted(file.name for file in source.iterdir()) == before


@pytest.mark.parametrize(("error", "code"), [(OSError("the disk is full"), 1), (KeyboardInterrupt(), None)])
def test_a_conversion_that_dies_leaves_nothing(tmp_path, capsys, monkeypatch, error, code):
    def dies(*args, **kwargs):
        raise error

    monkeypatch.setattr(saving, "write_params", dies)
    command = ["convert", str(CASES / "encoder-bert"), str(tmp_path / "made")]
    if code is None:
        with pytest.raises(KeyboardInterrupt):
            main(command)
    else:
        assert main(command) == code
        assert "the disk is full" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_example_pairs_can_be_scored(tmp_path, bert):
    example = ROOT / "examples" / "pairs.jsonl"
    assert score(BERT, example, tmp_path / "scores.jsonl") == 0
    records = read_records(tmp_path / "scores.jsonl")
    assert [record["id"] for record in records] == [record["id"] for record in read_records(example)]
    assert len({record["id"] for record in records}) == len(records) == 14
    assert np.isfinite([record["score"] for record in records]).all()


def test_the_softcap_of_the_config_can_be_asked_for(tmp_path):
    case = load_case("lightweight-sep")
    places, pairs = sound(case)
    source, target = write_pairs(tmp_path / "pairs.jsonl", pairs), tmp_path / "scores.jsonl"
    assert score(case.folder, source, target, "--attention-softcap", "config") == 0
    assert case.runs[0]["call"] == {}
    scores = [record["score"] for record in read_records(target)]
    assert case.error(0, scores, places) <= case.allowed_error(0)
