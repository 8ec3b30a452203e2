import json
import sys
from pathlib import Path

import pytest

from flax_rerank.operations import count_work, sizes_of

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import bench  # noqa: E402
from benchmark.models import PUBLISHED, scale_layers  # noqa: E402
from benchmark.ours import Ours  # noqa: E402
from benchmark.protocol import Worker, WorkerStopped  # noqa: E402
from benchmark.report import as_markdown, largest_difference, plot, summarize  # noqa: E402
from benchmark.workloads import bulk_pairs, interactive_calls, read_pairs  # noqa: E402

PAIRS = [(f"query {q}", f"passage {q} {p}") for q in range(3) for p in range(2 + q)]


def answer(seconds: float, **more: object) -> dict[str, object]:
    return {
        "seconds": seconds,
        "computed_tokens": 100,
        "padding_tokens": 10,
        "tokens": 90,
        "flops": 1e6,
        "others_cpu_share": 0.25,
        **more,
    }


@pytest.fixture
def result():
    rounds = {"ours": [answer(2.0), answer(1.0), answer(4.0)], "theirs": [answer(6.0), answer(5.0), answer(4.0)]}
    warm = summarize(rounds, 12)
    for figures in warm.values():
        figures |= {"peak_bytes": 3 * 2**29, "peak_flops_per_second": 1e9}
    cold = summarize({"ours": [answer(2.0)], "ours, cache filled": [answer(1.0)], "theirs": [answer(3.0)]}, 1)
    return {
        "machine": {"cpu": "a CPU", "cpus": 2, "memory_bytes": 2**33},
        "settings": {"rounds": 3},
        "models": {"m": {"setting": {"options": {}}, "workloads": {"bulk": warm, "cold": cold}}},
    }


def test_read_pairs_names_the_line_at_fault(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"query": "a", "passage": "b", "id": 1}\n', encoding="utf-8")
    assert read_pairs(file) == [("a", "b")]
    file.write_text('{"query": "a", "passage": "b"}\n{"query": "a"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2 is not a JSON object"):
        read_pairs(file)
    file.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no pairs"):
        read_pairs(file)


def test_interactive_calls_have_a_query_each_and_its_own_passages_first():
    calls = interactive_calls(PAIRS, 4, passages=3)
    assert [{query for query, _ in call} for call in calls] == [{f"query {q}"} for q in (2, 1, 0, 2)]
    assert [len(call) for call in calls] == [3] * 4
    own = {passage for query, passage in PAIRS if query == "query 0"}
    assert {passage for _, passage in calls[2][:2]} == own
    assert interactive_calls(PAIRS, 4, passages=3) == calls


def test_bulk_pairs_are_all_different():
    fewer, more = bulk_pairs(PAIRS, 5), bulk_pairs(PAIRS, 18)
    assert len(set(fewer)) == 5
    assert set(fewer) < set(PAIRS)
    assert more[:9] == PAIRS
    assert len(set(more)) == 18


def test_operations_are_those_of_the_pairs_own_tokens(reranker):
    """Of the same layers and compression that the reranker runs."""
    loaded = reranker("lightweight-gemma2", {"compress_layers": [3], "compress_ratio": 2})
    pairs = [("what is panda?", "The giant panda is a bear.")]
    prepared = loaded.prepare(pairs)
    length, passage = int(prepared.tokens[0]), int(prepared.pairs.passage_lengths[0])
    sizes = sizes_of(loaded.spec.config, loaded.spec.readout)
    expected = count_work(sizes, length, sizes.layers, [(3, length - passage + -(-passage // 2))]).operations
    ours = Ours.__new__(Ours)
    ours._reranker = loaded
    alone = ours.device_alone(pairs, {})
    assert (alone["tokens"], alone["flops"]) == (length, expected)
    assert alone["seconds"] > 0
    assert expected < count_work(sizes, length).operations


def test_layers_are_scaled_with_the_model():
    init = PUBLISHED["bge-reranker-v2.5-gemma2-lightweight"].init
    assert scale_layers(init, 21, 42, 4) == {"cutoff_layers": [12], "compress_layers": [4], "compress_ratio": 2}
    assert scale_layers(init, 2, 42, 2) == {"cutoff_layers": [2], "compress_layers": [1], "compress_ratio": 2}


def test_summary_takes_medians_and_the_ratio_of_each_round(result):
    ours, theirs = (result["models"]["m"]["workloads"]["bulk"][side] for side in ("ours", "theirs"))
    assert ours["ratio"] == {"median": 3.0, "least": 1.0, "most": 5.0}
    assert (ours["pairs_per_second"], theirs["pairs_per_second"]) == (6.0, 2.4)
    assert (ours["tokens_per_second"], ours["flops_per_second"]) == (45.0, 5e5)
    assert theirs["padding_share"] == 0.1
    assert "ratio" not in theirs
    assert result["models"]["m"]["workloads"]["cold"]["ours, cache filled"]["ratio"]["median"] == 3.0


def test_largest_difference_of_one_layer_and_of_several():
    assert largest_difference([1.0, 2.0], [1.5, 2.25]) == 0.5
    assert largest_difference([[1.0, 2.0], [0.0, 0.0]], [[1.0, 2.0], [0.0, -2.0]]) == 2.0


def test_markdown_has_a_row_for_each_side(result):
    lines = as_markdown(result).splitlines()
    assert lines[0] == "a CPU, 2 CPUs, 8 GiB"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 5
    assert {len(row) for row in rows} == {16}
    found = dict(zip(rows[0], rows[2], strict=True))
    assert found["side"] == "flax-rerank"
    assert (found["pairs/s"], found["ratio (least to most)"]) == ("6.0", "3.00 (1.00 to 5.00)")
    assert found["CPU of others"] == "25%"
    assert (found["padding"], found["GiB at most"], found["host not hidden"]) == ("10.0%", "1.50", "")
    assert json.loads(json.dumps(result)) == result


def test_plot_draws_the_warm_workloads(result, tmp_path):
    pytest.importorskip("matplotlib")
    plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_worker_answers_and_says_why_it_stopped(tmp_path, monkeypatch):
    (tmp_path / "echo.py").write_text(
        "from benchmark.protocol import serve\n"
        "class Echo:\n"
        "    def __init__(self, settings): self.settings = settings\n"
        "    def add(self, a): print('no answer'); return {'sum': a + self.settings['b']}\n"
        "serve(Echo)\n",
        encoding="utf-8",
    )
    path = {"PYTHONPATH": f"{SCRIPTS}:{tmp_path}"}
    with Worker(sys.executable, "echo", {"b": 2, "threads": 1}, path) as worker:
        added = worker.ask("add", a=1)
        assert added["sum"] == 3
        assert 0 <= added["others_cpu_share"] < 1.5
        assert 0 <= added["idle_cpu_seconds"] < 1
        with pytest.raises(WorkerStopped, match=r"echo stopped \(exit code 1\)(?s:.*)no attribute 'subtract'"):
            worker.ask("subtract", a=1)


def test_options_that_do_not_go_together(capsys):
    given = ["--input", "p.jsonl", "--reference-python", "python"]
    args = bench.parse_arguments(
        [*given, "--model", "m", "--options", '{"max_length": 64}', "--reference-env", "A=1=2"]
    )
    assert (args.options, args.reference_env) == ({"max_length": 64}, [("A", "1=2")])
    for wrong in (["--models", "bge-reranker-base"], ["--model", "m", "--models", "bge-reranker-base"]):
        with pytest.raises(SystemExit):
            bench.parse_arguments([*given, *wrong])
    assert "--models need --tokenizers" in capsys.readouterr().err
