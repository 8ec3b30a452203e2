"""`flax-rerank convert` and `flax-rerank score`, on the reference cases."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint
import pytest
from reference_cases import CASES, largest_difference, load_case

from flax_rerank import FlaxAutoReranker
from flax_rerank.cli import main

ROOT = CASES.parents[1]
PAIRS = 5  # of a case: fewer lengths, fewer programs to compile
ONE_DEVICE = ["--devices", "cpu:0", "--no-progress"]
yes_in_pieces = pytest.mark.filterwarnings("ignore:'Yes' is")
CLASS_OPTIONS = {
    "--cutoff-layers": "2",
    "--compress-layers": "1",
    "--compress-ratio": "2",
    "--head-index": "layer",
    "--prompt": "Yes?",
    "--peft-path": "adapter",
}


def write_lines(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def write_pairs(path, pairs):
    records = [{"id": i, "query": query, "meta": {"n": [i, None]}, "passage": p} for i, (query, p) in enumerate(pairs)]
    return write_lines(path, [json.dumps(record, ensure_ascii=False) for record in records])


def read_records(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def score(model, source, target, *options):
    return main(["score", "--model", str(model), "--input", source, "--output", str(target), *ONE_DEVICE, *options])


@pytest.fixture
def bert(reranker, monkeypatch):
    """Every model name loads the same reranker, which is there already."""
    model = reranker("encoder-bert")
    monkeypatch.setattr(FlaxAutoReranker, "from_finetuned", lambda *args, **kwargs: model)
    return model


@yes_in_pieces
@pytest.mark.parametrize(
    ("name", "run", "options"),
    [
        ("encoder-bert", 0, []),
        ("encoder-bert", 1, ["--max-length", "64", "--normalize"]),
        ("encoder-xlmr", 2, ["--max-length", "64", "--query-max-length", "16", "--batch-size", "3"]),
        ("decoder-llama", 1, ["--max-length", "80"]),
        ("decoder-gemma", 2, ["--prompt", "Is B relevant to A? Answer 'Yes' or 'No'.", "--normalize"]),
        ("decoder-gemma", 3, ["--query-instruction", "query: ", "--passage-instruction", "doc: "]),
        ("layerwise-minicpm", 1, ["--cutoff-layers", "3"]),
        (
            "lightweight-gemma2",
            3,
            ["--cutoff-layers", "6", "--compress-ratio", "4", "--compress-layers", "1", "3"],
        ),
    ],
)
def test_scores_equal_the_reference(tmp_path, name, run, options):
    case = load_case(name)
    source, target = write_pairs(tmp_path / "pairs.jsonl", case.pairs[:PAIRS]), tmp_path / "new" / "scores.jsonl"
    assert score(case.folder, source, target, *options) == 0
    records = read_records(target)
    scores = [record.pop("score") for record in records]
    assert largest_difference(scores, case.runs[run]["scores"][:PAIRS]) <= 1e-4
    assert records == read_records(source)
    assert [float(np.float32(value)) for value in scores] == scores


def test_several_cutoff_layers_give_a_field_each(tmp_path):
    case = load_case("layerwise-minicpm")
    source, target = write_pairs(tmp_path / "pairs.jsonl", case.pairs[:PAIRS]), tmp_path / "scores.jsonl"
    assert score(case.folder, source, target, "--cutoff-layers", "2", "4", "6") == 0
    records = read_records(target)
    assert list(records[0]) == ["id", "query", "meta", "passage", "score_2", "score_4", "score_6"]
    scores = [[record[f"score_{layer}"] for record in records] for layer in (2, 4, 6)]
    expected = [by_pair[:PAIRS] for by_pair in case.runs[2]["scores"]]
    assert largest_difference(scores, expected) <= 1e-4


@yes_in_pieces
@pytest.mark.parametrize("name", ["encoder-bert", "decoder-llama", "layerwise-minicpm"])
def test_a_converted_checkpoint_scores_the_same(tmp_path, capsys, name):
    folder = tmp_path / "made" / name
    assert main(["convert", str(CASES / name), str(folder)]) == 0
    printed = capsys.readouterr().out
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert f"{size:,} bytes" in printed
    assert "parameters in float32" in printed
    assert not [file for file in folder.rglob("*") if file.suffix in (".safetensors", ".bin")]

    source = write_pairs(tmp_path / "pairs.jsonl", load_case(name).pairs[:PAIRS])
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
    source = write_pairs(tmp_path / "pairs.jsonl", case.pairs[:PAIRS])
    converted = run("convert.py", case.folder, "made")
    assert (converted.returncode, converted.stdout.startswith("made: FlaxReranker, ")) == (0, True)
    scored = run("score.py", "--model", "made", "--input", source, "--output", "-", "--devices", "cpu:0")
    assert scored.returncode == 0
    assert f"{PAIRS} pairs in " in scored.stderr
    scores = [json.loads(line)["score"] for line in scored.stdout.splitlines()]
    assert largest_difference(scores, case.runs[0]["scores"][:PAIRS]) <= 1e-4


def test_chunks_do_not_change_the_scores(tmp_path, bert):
    pairs = load_case("encoder-bert").pairs
    source = write_pairs(tmp_path / "pairs.jsonl", pairs)
    scores = {}
    for size in ("5", "12", "10000"):
        target = tmp_path / f"{size}.jsonl"
        assert score("any", source, target, "--chunk-size", size) == 0
        assert [record["id"] for record in read_records(target)] == list(range(12))
        scores[size] = [record["score"] for record in read_records(target)]
    assert largest_difference(scores["5"], scores["10000"]) <= 1e-5
    assert scores["12"] == scores["10000"]


def test_the_summary_counts_all_chunks(tmp_path, bert, capsys):
    pairs = load_case("encoder-bert").pairs
    source = write_pairs(tmp_path / "pairs.jsonl", pairs)
    chunks = [bert.score(pairs[start : start + 5], show_progress_bar=False) for start in (0, 5, 10)]
    assert score("any", source, tmp_path / "scores.jsonl", "--chunk-size", "5") == 0
    summary = capsys.readouterr().err
    padding = sum(chunk.padding_tokens for chunk in chunks) / sum(chunk.computed_tokens for chunk in chunks)
    assert summary.startswith("12 pairs in ")
    assert f" {padding:.1%} padding, " in summary
    assert f" {sum(int(chunk.truncated.sum()) for chunk in chunks)} truncated, " in summary
    assert f" {len({shape for chunk in chunks for shape in chunk.shapes})} shapes" in summary


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{'query': 1}", "no JSON: "),
        ("[" * 100_000, "no JSON: "),
        ('["query", "passage"]', "no JSON object but list"),
        ('{"query": "a"}', 'no "passage"'),
        ('{"passage": "a"}', 'no "query"'),
        ('{"query": "a", "passage": null}', '"passage" is no string but NoneType'),
        ('{"query": 7, "passage": "a"}', '"query" is no string but int'),
        ('{"query": "a\\ud800", "passage": "b"}', "the pair cannot be encoded: its query holds a lone surrogate"),
        (json.dumps({"query": "panda " * 600, "passage": "b"}), "the pair: no token of the passage is left"),
    ],
)
@pytest.mark.parametrize("chunk_size", ["2", "100"])
def test_a_bad_line_is_named_and_all_before_it_is_written(
    tmp_path, bert, capsys, monkeypatch, bad, reason, chunk_size
):
    good = ['{"query": "a", "passage": "b"}', "", '{"query": "c", "passage": "d"}', '{"query": "e", "passage": "f"}']
    source = write_lines(tmp_path / "pairs.jsonl", [*good, bad, good[0], "no JSON either"])
    monkeypatch.setattr(bert, "query_max_length", 600)
    assert score("any", source, tmp_path / "scores.jsonl", "--chunk-size", chunk_size) == 1
    assert f"{source}:5: {reason}" in capsys.readouterr().err
    assert [record["query"] for record in read_records(tmp_path / "scores.jsonl")] == ["a", "c", "e"]


def test_a_line_that_is_no_utf8_is_named(tmp_path, bert, capsys):
    source = tmp_path / "pairs.jsonl"
    source.write_bytes(b'{"query": "a", "passage": "b"}\n{"query": "\xff", "passage": "b"}\n')
    assert score("any", str(source), tmp_path / "scores.jsonl") == 1
    assert f"{source}:2: no JSON: 'utf-8' codec" in capsys.readouterr().err
    assert len(read_records(tmp_path / "scores.jsonl")) == 1


def test_the_first_of_several_refused_lines_is_named(tmp_path, bert, capsys, monkeypatch):
    monkeypatch.setattr(bert, "query_max_length", 600)
    lines = [("a", "b"), ("panda " * 600, "b"), ("c", "d"), ("a\ud800", "b")]
    source = write_lines(tmp_path / "p.jsonl", [json.dumps({"query": q, "passage": p}) for q, p in lines])
    assert score("any", source, tmp_path / "scores.jsonl") == 1
    assert f"{source}:2: the pair: no token of the passage is left" in capsys.readouterr().err
    assert [record["query"] for record in read_records(tmp_path / "scores.jsonl")] == ["a"]


def test_a_score_that_is_not_finite_names_its_line(tmp_path, bert, capsys, monkeypatch):
    def fails_at_c(pairs, **options):
        queries = [query for query, _ in pairs]
        if "c" in queries:
            raise FloatingPointError(f"the score of pair {queries.index('c')} is [nan]")
        return finite(pairs, **options)

    finite = bert.score
    monkeypatch.setattr(bert, "score", fails_at_c)
    source = write_pairs(tmp_path / "pairs.jsonl", [("a", "b"), ("b", "b"), ("c", "b"), ("d", "b")])
    assert score("any", source, tmp_path / "scores.jsonl", "--chunk-size", "3") == 1
    assert capsys.readouterr().err == f"flax-rerank: {source}:3: the score of the pair is [nan]\n"
    assert [record["query"] for record in read_records(tmp_path / "scores.jsonl")] == ["a", "b"]


def test_other_fields_come_back_as_they_were(tmp_path, bert):
    line = (
        '{"query": "a", "passage": "b", "id": "x\\ud800", "text": "日本", "score": "old", "big": 12345678901234567890}'
    )
    source = write_lines(tmp_path / "pairs.jsonl", [line])
    assert score("any", source, tmp_path / "scores.jsonl") == 0
    (record,) = read_records(tmp_path / "scores.jsonl")
    assert record == json.loads(line) | {"score": bert.compute_score([("a", "b")])[0]}
    assert "日本" in (tmp_path / "scores.jsonl").read_text(encoding="utf-8")


def test_no_lines_give_no_lines(tmp_path, bert, capsys):
    assert score("any", write_lines(tmp_path / "pairs.jsonl", ["", " "]), tmp_path / "scores.jsonl") == 0
    assert (tmp_path / "scores.jsonl").read_bytes() == b""
    assert capsys.readouterr().err.startswith("0 pairs in ")


def test_an_output_that_exists_is_replaced_only_if_asked(tmp_path, bert, capsys):
    source = write_pairs(tmp_path / "pairs.jsonl", [("a", "b")])
    target = tmp_path / "scores.jsonl"
    target.write_text("precious")
    assert score("any", source, target) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert target.read_text() == "precious"
    assert score("any", source, target, "--overwrite") == 0
    assert [record["id"] for record in read_records(target)] == [0]


def test_input_and_output_must_differ(tmp_path, bert, capsys):
    source = write_pairs(tmp_path / "pairs.jsonl", [("a", "b")])
    before = Path(source).read_bytes()
    (tmp_path / "link").symlink_to(source)
    assert score("any", source, tmp_path / "link", "--overwrite") == 1
    assert "input and output are the same file" in capsys.readouterr().err
    assert Path(source).read_bytes() == before


@pytest.mark.parametrize("option", CLASS_OPTIONS)
def test_an_option_that_the_class_does_not_have_is_refused(tmp_path, capsys, option):
    source, target = write_pairs(tmp_path / "pairs.jsonl", [("a", "b")]), tmp_path / "scores.jsonl"
    assert score(CASES / "encoder-bert", source, target, option, CLASS_OPTIONS[option]) == 1
    assert f"{option} is no option for " in capsys.readouterr().err
    assert not target.exists()


def test_a_value_that_the_model_refuses_leaves_the_old_output(tmp_path, capsys):
    source, target = write_pairs(tmp_path / "pairs.jsonl", [("a", "b")]), tmp_path / "scores.jsonl"
    target.write_text("old")
    assert score(CASES / "layerwise-minicpm", source, target, "--overwrite", "--cutoff-layers", "99") == 1
    assert "cutoff_layers [99]" in capsys.readouterr().err
    assert target.read_text() == "old"


def test_numbers_below_one_are_refused_by_the_parser(tmp_path, capsys):
    for option in ("--chunk-size", "--batch-size"):
        with pytest.raises(SystemExit) as stopped:
            score("any", "in", tmp_path / "out", option, "0")
        assert stopped.value.code == 2
        assert f"{option}: 0 is not at least 1" in capsys.readouterr().err


def test_debug_lets_the_error_through(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        score("any", str(tmp_path / "nowhere"), tmp_path / "out", "--debug")


def test_an_error_of_the_program_propagates(tmp_path, bert, monkeypatch):
    def broken(pairs, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(bert, "score", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        score("any", write_pairs(tmp_path / "pairs.jsonl", [("a", "b")]), tmp_path / "out")


def test_convert_refuses_a_folder_that_exists_before_it_loads(tmp_path, capsys, monkeypatch):
    def loaded(*args, **kwargs):
        raise AssertionError("it loaded the model")

    out = tmp_path / "made"
    assert main(["convert", str(CASES / "encoder-bert"), str(out)]) == 0
    (out / "config.json").write_text("kept")
    with monkeypatch.context() as patched:
        patched.setattr(FlaxAutoReranker, "from_finetuned", loaded)
        assert main(["convert", str(CASES / "encoder-bert"), str(out)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "config.json").read_text() == "kept"
    assert main(["convert", str(CASES / "encoder-bert"), str(out), "--overwrite"]) == 0
    assert json.loads((out / "config.json").read_text())["model_class"] == "encoder-only-base"
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

    monkeypatch.setattr(orbax.checkpoint.StandardCheckpointer, "save", dies)
    command = ["convert", str(CASES / "encoder-bert"), str(tmp_path / "made")]
    if code is None:
        with pytest.raises(KeyboardInterrupt):
            main(command)
    else:
        assert main(command) == code
        assert capsys.readouterr().err == "flax-rerank: the disk is full\n"
    assert list(tmp_path.iterdir()) == []


def test_the_example_pairs_can_be_scored(tmp_path, bert):
    example = ROOT / "examples" / "pairs.jsonl"
    assert score("any", str(example), tmp_path / "scores.jsonl") == 0
    records = read_records(tmp_path / "scores.jsonl")
    assert [record["id"] for record in records] == [record["id"] for record in read_records(example)]
    assert len({record["id"] for record in records}) == len(records) == 14
    assert np.isfinite([record["score"] for record in records]).all()


def test_the_softcap_of_the_config_can_be_asked_for(tmp_path):
    case = load_case("lightweight-sep")
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps({"query": q, "passage": p}) + "\n" for q, p in case.pairs), encoding="utf-8")
    out = tmp_path / "scores.jsonl"
    command = ["score", "--model", str(case.folder), "--input", str(source), "--output", str(out)]
    assert main([*command, "--attention-softcap", "config"]) == 0
    scores = [json.loads(line)["score"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert case.runs[0]["call"] == {}
    assert largest_difference(scores, case.runs[0]["scores"]) <= 1e-4
