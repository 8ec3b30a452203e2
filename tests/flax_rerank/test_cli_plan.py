"""`flax-rerank plan`, on topologies that take no libtpu."""

import json
import re

import pytest
from reference_cases import CASES

from flax_rerank.cli import main

MODEL = str(CASES / "encoder-xlmr")


def test_a_plan_in_words(capsys):
    assert main(["plan", "bge-reranker-v2-m3", "--topology", "h100:8", "--pairs", "100e6", "--price", "2.5"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("bge-reranker-v2-m3 in bfloat16 on h100:8: 8 chips, all pairs of the greatest length\n")
    assert "Best mesh: data=8" in out
    names, figures = (re.split(r"\s{2,}", line.strip()) for line in out.splitlines()[-2:])
    job = dict(zip(names, figures, strict=True))
    assert (job["pairs"], job["a chip hour costs"]) == ("100,000,000", "2.50")
    assert float(job["chip hours"]) == pytest.approx(8 * float(job["hours at least"]), abs=0.1)
    assert float(job["price"]) == pytest.approx(2.5 * float(job["chip hours"]), abs=0.02)


def test_prompts_are_near_without_a_tokenizer(capsys):
    assert main(["plan", "bge-reranker-v2-gemma", "--topology", "h100:8"]) == 0
    assert "note: the tokenizer is not here" in capsys.readouterr().out


def test_a_plan_for_machines(capsys, tmp_path):
    sample = tmp_path / "pairs.jsonl"
    sample.write_text(json.dumps({"query": "what is panda?", "passage": "a bear"}) + "\n", encoding="utf-8")
    assert main(["plan", MODEL, "--topology", "cpu:2", "--sample", str(sample), "--pairs", "50", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"]
    assert plan["dtype"] == "float32"
    assert plan["best"]["mesh"] == "data=2"
    (step,) = plan["best"]["steps"]
    assert step["argument_bytes"] > 4 * 702 * 32
    assert step["compile_seconds"] > 0
    assert plan["job"]["pairs"] == 50
    assert plan["job"]["hours"] is None  # nothing is known of the CPU's speed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--topology", "v9:1"], "'v9' is not a known chip"),
        (["--topology", "h100:8", "--mesh", "data=2,model=4"], "take data=8"),
        (["--topology", "h100:8", "--cutoff-layers", "28"], "--cutoff-layers is not an option for"),
        (["--topology", "h100:8", "--max-length", "9000"], "max_length 9000 makes inputs of up to 9000 tokens"),
        (["--topology", "h100:8", "--lengths", "missing.json"], "missing.json"),
    ],
)
def test_what_cannot_be_is_one_message(options, message, capsys):
    assert main(["plan", MODEL, *options]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--price", "-3"], ["--query-tokens", "0"], ["--pairs", "none"]])
def test_numbers_that_cannot_be(options, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["plan", MODEL, "--topology", "h100:8", *options])
    assert stopped.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_a_sample_is_as_many_pairs_as_it_has(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("flax_rerank.cli.plan.SHARD_ROWS", 2)
    sample = tmp_path / "pairs.jsonl"
    sample.write_text(5 * (json.dumps({"query": "what is panda?", "passage": "a bear"}) + "\n"), encoding="utf-8")
    assert main(["plan", MODEL, "--topology", "h100:1", "--sample", str(sample), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["job"]["pairs"] == 5


def test_speeds_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "speeds.png"
    assert main(["plan", MODEL, "--topology", "h100:8", "--plot", str(path), "--plot-lengths", "64", "128"]) == 0
    assert path.read_bytes()[:4] == b"\x89PNG"
