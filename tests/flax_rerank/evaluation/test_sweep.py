"""Quality against cost."""

import json

import pytest
from reference_cases import CASES

from flax_rerank.cli import main
from flax_rerank.evaluation import EvaluationSet, evaluate, open_set
from flax_rerank.evaluation.sweep import front, operations_of
from flax_rerank.evaluation.systems import prepare
from flax_rerank.operations import count_work, sizes_of

LAYERWISE = str(CASES / "layerwise-minicpm")


def test_all_combinations_are_evaluated_with_their_cost(beir, tmp_path, capsys, reranker):
    picture = tmp_path / "sweep.png"
    (beir / "run.txt").unlink()
    arguments = [
        "--sweep",
        "cutoff-layers=2,3",
        "max_length=64",
        "--plot",
        str(picture),
        "--measures",
        "nDCG",
        "--json",
    ]
    assert main(["evaluate", LAYERWISE, "--beir", str(beir), *arguments, "--devices", "cpu:0", "--no-progress"]) == 0
    points = json.loads(capsys.readouterr().out)["points"]
    assert [point["settings"] for point in points] == [{"cutoff_layers": n, "max_length": 64} for n in (2, 3)]
    data, model = open_set(beir), reranker("layerwise-minicpm")
    (step,) = model.prepare(data.pairs(), max_length=64).steps
    for point in points:
        expected = evaluate(lambda pairs, given=point["settings"]: model.compute_score(pairs, **given), data, ["nDCG"])
        assert point["mean"] == expected.mean
        work = count_work(
            sizes_of(model.spec.config, model.spec.readout), step.shape.length, point["settings"]["cutoff_layers"]
        )
        assert point["operations"] == work.operations * step.shape.rows / 4
        assert point["pairs_per_second"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_compression_costs_less_after_a_run_without_it(reranker):
    model = reranker("lightweight-gemma2", {"compress_layers": [1]})
    passages = [
        " ".join([str(place), *["panda"] * (place % 40 + 20)]) for place in range(300)
    ]  # shapes are fitted from 256 pairs on
    data = EvaluationSet(
        {"q": "bear"},
        {str(i): text for i, text in enumerate(passages)},
        {"q": {"0": 1}},
        {"q": [*map(str, range(300))]},
    )

    def cost(ratio):
        return operations_of(model, prepare(model, data, cutoff_layers=3, compress_ratio=ratio))

    assert cost(1) > 1.1 * cost(2) > 1.1 * cost(4)


def test_the_front_has_what_nothing_else_beats():
    assert front([(1, 5), (2, 4), (2, 3), (3, 4), (4, 1), (1, 6)]) == [4, 3, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bm25", "--sweep", "max_length=9"], "--sweep is for a reranker, and bm25 is not one"),
        ([LAYERWISE, "--sweep", "max_length=9", "--max-length", "9"], "max_length cannot be varied"),
        ([LAYERWISE, "--sweep", "max_length=9", "max-length=10"], "--sweep has a setting twice"),
        ([LAYERWISE, "--sweep", "compress_ratio=2"], "--compress-ratio is not an option for"),
        ([LAYERWISE, "--sweep", "max_length=9", "--baseline", "bm25"], "--baseline does not go with --sweep"),
        (["bm25", "--plot", "x.png"], "--plot does not go without --sweep"),
    ],
)
def test_what_is_at_fault_is_named(beir, capsys, arguments, message):
    assert main(["evaluate", *arguments, "--beir", str(beir)]) == 1
    assert message in capsys.readouterr().err


def test_a_setting_that_cannot_be_varied_is_named(beir, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", LAYERWISE, "--beir", str(beir), "--sweep", "mesh=1,2"])
    assert "mesh=1,2 is not a setting with its values" in capsys.readouterr().err
