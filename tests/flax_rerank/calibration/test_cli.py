"""`flax-rerank calibrate`, and the checkpoint that it writes."""

import json

import numpy as np
import pytest
from reference_cases import CASES, load_case

from flax_rerank import CheckpointError, FlaxAutoReranker
from flax_rerank.calibration import Calibration, fit, reliability
from flax_rerank.checkpoint import verify_manifest
from flax_rerank.cli import main
from flax_rerank.training.settings import TrainingSettings
from flax_rerank.training.trainer import open_trained

BERT, LAYERWISE = str(CASES / "encoder-bert"), str(CASES / "layerwise-minicpm")
TEXTS = load_case("encoder-bert").pairs[:12]
OPTIONS = ["--devices", "cpu:0", "--no-progress", "--max-length", "64"]


@pytest.fixture
def labelled(tmp_path, reranker):
    """A file of pairs whose labels mostly follow the scores, and the scores and labels."""
    scores = np.array(reranker("encoder-bert", {"max_length": 64}).compute_score(TEXTS))
    labels = scores > np.median(scores)
    labels[np.argsort(scores)[[1, 2, -2]]] ^= True
    rows = [
        {"query": query, "passage": passage, "label": int(label)}
        for (query, passage), label in zip(TEXTS, labels, strict=True)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path, scores, labels


def test_a_calibrated_checkpoint_gives_probabilities(labelled, tmp_path, capsys):
    path, scores, labels = labelled
    out, again, picture = tmp_path / "out", tmp_path / "again", tmp_path / "reliability.png"
    arguments = ["--pairs", str(path), "--json", "--plot", str(picture), *OPTIONS]
    assert main(["calibrate", BERT, str(out), *arguments]) == 0
    printed = json.loads(capsys.readouterr().out)
    expected = fit(scores, labels)
    assert Calibration(**printed["calibration"]) == expected
    assert (printed["pairs"], printed["relevant"]) == (12, labels.sum())
    sigmoids = 1 / (1 + np.exp(-scores))
    assert printed["reliability"]["sigmoid"]["error"] == pytest.approx(reliability(sigmoids, labels).error)
    assert picture.read_bytes().startswith(b"\x89PNG")

    loaded = FlaxAutoReranker.from_finetuned(str(out), devices="cpu:0")
    assert loaded.compute_score(TEXTS, normalize="calibrated") == pytest.approx(expected(scores).tolist(), abs=1e-6)
    assert loaded.compute_score(TEXTS) == pytest.approx(scores.tolist(), abs=1e-6)
    # Of a Flax checkpoint all but the settings is copied.
    assert main(["calibrate", str(out), str(again), "--method", "isotonic", *arguments]) == 0
    assert verify_manifest(again) == []
    loaded = FlaxAutoReranker.from_finetuned(str(again), devices="cpu:0", normalize="calibrated")
    expected = fit(np.array(loaded.compute_score(TEXTS, normalize=False)), labels, "isotonic")
    assert loaded.settings.calibration == expected
    assert loaded.settings.max_length == 64
    assert loaded.compute_score(TEXTS[0]) == pytest.approx(expected(scores[:1]).tolist(), abs=1e-6)
    # Training changes the scores, so it starts without a calibration.
    trained = open_trained(str(again), TrainingSettings(output_dir=str(tmp_path / "run")))
    assert trained.settings.kept() == {"max_length": 64}

    config = json.loads((again / "config.json").read_text(encoding="utf-8"))
    config["scoring"]["calibration"]["scores"] = [2, 1]
    (again / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config.json: scoring: scores and probabilities must be as many"):
        FlaxAutoReranker.from_finetuned(str(again), devices="cpu:0")


def test_a_calibration_is_for_the_scores_of_one_layer(reranker):
    model = reranker("layerwise-minicpm", {"calibration": None})
    calibration = Calibration(method="platt", slope=2.0, layer=2)
    raw = model.score(TEXTS[:2], cutoff_layers=2).scores[2]
    found = model.compute_score(TEXTS[:2], cutoff_layers=2, normalize="calibrated", calibration=calibration)
    assert found == calibration(raw).tolist()
    with pytest.raises(ValueError, match=r"for the scores after layer 2, not for cutoff_layers \[2, 3\]"):
        model.compute_score(TEXTS[:2], cutoff_layers=[2, 3], normalize="calibrated", calibration=calibration)
    with pytest.raises(ValueError, match="and there is no calibration: flax-rerank calibrate makes one"):
        model.compute_score(TEXTS[:2], normalize="calibrated")
    with pytest.raises(TypeError, match="normalize is 'sigmoid'; it must be bool or 'calibrated'"):
        model.compute_score(TEXTS[:2], normalize="sigmoid")


@pytest.mark.parametrize(
    ("model", "line", "message"),
    [
        (BERT, {"query": "a", "passage": "b"}, "pairs.jsonl:1: there is no 'label'"),
        (BERT, {"query": "a", "passage": "b", "label": "1"}, "pairs.jsonl:1: query and passage must be strings"),
        (BERT, {"query": "a", "passage": "b", "label": 1}, "1 of the pairs are relevant and 0 are not"),
        (LAYERWISE, {"query": "a", "passage": "b", "label": 1}, "give one cutoff layer"),
    ],
)
def test_what_is_at_fault_is_named(model, line, message, tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(line))
    layers = ["--cutoff-layers", "2", "3"] if model == LAYERWISE else []
    arguments = ["--pairs", str(tmp_path / "pairs.jsonl"), *OPTIONS, *layers]
    assert main(["calibrate", model, str(tmp_path / "out"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
