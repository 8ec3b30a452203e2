"""Curves of a run: lines that go on, a picture, and reports to other tools."""

import json
import sys
from types import SimpleNamespace

import pytest

from flax_rerank.training.curves import Curve, Reports, plot, read


def test_a_curve_goes_on_after_a_step_and_past_half_a_line(tmp_path):
    file = tmp_path / "curve.jsonl"
    file.write_text(
        "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 3)) + '{"step": 4', "utf-8"
    )
    assert [point["step"] for point in read(file)] == [1, 2, 3]
    curve = Curve(file, 2)
    curve.add({"step": 3, "loss": 0.5})
    curve.close()
    assert read(file) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 0.5}]


def test_picture_of_both_curves(tmp_path):
    plot(tmp_path, [{"step": 1, "loss": 1.0}], [{"step": 1, "nDCG@10": 0.5}])
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_gets_every_figure(tmp_path, monkeypatch):
    told = []
    writer = SimpleNamespace(add_scalar=lambda *figure: told.append(figure), close=lambda: told.append("closed"))
    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=lambda folder: writer))
    reports = Reports(["tensorboard"], tmp_path, {})
    reports.write(3, {"loss": 0.5, "padding": 0.1})
    reports.close()
    assert told == [("loss", 0.5, 3), ("padding", 0.1, 3), "closed"]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="report_to needs wandb"):
        Reports(["wandb"], tmp_path, {})
