"""The scripts in examples/, run as they are."""

import runpy
import shutil
from pathlib import Path

import pytest
from reference_cases import CASES

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a script of examples/ with arguments beside four of its 40 queries, and gives the lines that it prints."""
    examples = shutil.copytree(EXAMPLES, tmp_path / "examples")
    qrels = examples / "evaluation" / "qrels" / "test.tsv"
    header, *lines = qrels.read_text(encoding="utf-8").splitlines(keepends=True)
    queries = list(dict.fromkeys(line.split()[0] for line in lines))[:4]
    kept = [line for line in lines if line.split()[0] in queries]
    qrels.write_text(header + "".join(kept), encoding="utf-8")

    def run(script, *arguments):
        monkeypatch.setattr("sys.argv", [script, *arguments])
        runpy.run_path(str(examples / script), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_a_search_is_reranked(run):
    lines = run("rerank_a_search.py", str(CASES / "encoder-bert"), "Which country borders Chad and Niger?")
    scores = [float(line.split()[0]) for line in lines]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)


def test_an_evaluation_is_plotted(run, tmp_path):
    picture = tmp_path / "sweep.png"
    lines = run("evaluate_and_plot.py", str(CASES / "encoder-bert"), str(picture))
    assert lines[0].startswith("BM25 0.")
    assert [line.partition(":")[0] for line in lines[1:]] == [f"max_length={length}" for length in (32, 64)]
    assert picture.read_bytes().startswith(b"\x89PNG")
