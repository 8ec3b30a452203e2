"""Whole runs: what they give, that they go on as they would have, and what they refuse."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import warnings

import numpy as np
import pytest
from reference_cases import CASES, largest_difference
from safetensors.numpy import load_file, save_file

from flax_rerank import FlaxAutoReranker
from flax_rerank.evaluation import Evaluation
from flax_rerank.training import TrainingSettings, train, trainer
from flax_rerank.training.step import TrainingStep

WORDS = "amber birch cedar delta ember fjord grove heath inlet jetty knoll larch".split()  # noqa: SIM905
ROWS = [
    {
        "query": f"what is {word}",
        "pos": [f"{word} is the answer to it"],
        "neg": [f"{other} is something else" for other in WORDS if other != word][:5],
    }
    for word in WORDS
]
PAIRS = [(row["query"], passage) for row in ROWS for passage in row["pos"] + row["neg"]]


def settings_of(out, **given):
    values = {
        "train_group_size": 3, "per_device_train_batch_size": 2, "query_max_len": 16, "passage_max_len": 32,
        "learning_rate": 2e-4, "max_steps": 6, "save_steps": 2, "devices": ["cpu:0"], "show_progress_bar": False,
    }  # fmt: skip
    return TrainingSettings(output_dir=str(out), **values | given)


def run(case, out, **given):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'Yes' is 2 tokens", UserWarning)
        return train(str(CASES / case) if isinstance(case, str) else case, ROWS, settings_of(out, **given))


def load(folder, **settings):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'Yes' is 2 tokens", UserWarning)
        return FlaxAutoReranker.from_finetuned(str(folder), devices="cpu:0", show_progress_bar=False, **settings)


def params_of(folder):
    return {path: np.asarray(array) for path, array in load(folder).params.items()}


def kill_at(monkeypatch, step, out, act):
    with monkeypatch.context() as patch:
        stop_at(patch, step, act)
        run("encoder-bert", out)


def points(out, name="curve"):
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def stop_at(monkeypatch, step, act):
    """Call `act` as the step of this number begins, once."""
    real, calls = TrainingStep.__call__, []

    def called(self, state, *arguments):
        calls.append(1)
        if len(calls) == step:
            act()
        return real(self, state, *arguments)

    monkeypatch.setattr(TrainingStep, "__call__", called)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    return out, run("encoder-bert", out)


def test_positives_rise_and_the_model_is_that_of_the_last_step(undisturbed):
    out, result = undisturbed
    losses = [point["loss"] for point in points(out)]
    assert [point["step"] for point in points(out)] == [1, 2, 3, 4, 5, 6]
    size = 1 + len(ROWS[0]["neg"])

    def margin(folder):
        scores = np.reshape(load(folder).compute_score(PAIRS), (-1, size))
        return np.mean(scores[:, 0] - scores[:, 1:].mean(axis=1))

    assert margin(result.model) > margin(CASES / "encoder-bert") + 0.1
    assert (result.step, result.steps) == (6, 6)
    card = (result.model / "README.md").read_text(encoding="utf-8")
    assert "base_model: encoder-bert" in card
    assert f"| 6 | {losses[-1]:.4f} |" in card


def test_killed_run_goes_on_bit_for_bit(undisturbed, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    with pytest.raises(Killed):
        kill_at(monkeypatch, 6, tmp_path / "run", kill)
    assert (tmp_path / "run/checkpoints/4").is_dir()
    result = run("encoder-bert", tmp_path / "run")
    assert points(tmp_path / "run") == points(undisturbed[0])
    expected = params_of(undisturbed[1].model)
    for path, array in params_of(result.model).items():
        np.testing.assert_array_equal(array, expected[path], path)


def test_sigterm_saves_the_step_and_exits_143(undisturbed, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as stopped:
        kill_at(monkeypatch, 3, tmp_path / "run", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert stopped.value.code == 143
    assert (tmp_path / "run/checkpoints/3").is_dir()
    run("encoder-bert", tmp_path / "run")
    assert points(tmp_path / "run") == points(undisturbed[0])


def test_another_setting_data_or_base_is_refused_by_name(undisturbed, tmp_path):
    out, _ = undisturbed
    with pytest.raises(ValueError, match=r"learning_rate is 0.5, it was 0.0002"):
        run("encoder-bert", out, learning_rate=0.5)
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    settings = settings_of(tmp_path / "run", max_steps=1)
    train(str(CASES / "encoder-bert"), file, settings)
    file.write_text("\n".join(map(json.dumps, ROWS[1:])), encoding="utf-8")
    with pytest.raises(ValueError, match=r"the file of data .*rows.jsonl has changed"):
        train(str(CASES / "encoder-bert"), file, settings)
    with pytest.raises(ValueError, match=r"model is .*encoder-xlmr"):
        run("encoder-xlmr", out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(FileExistsError, match=r"is not empty, and holds no run.json"):
        run("encoder-bert", tmp_path / "other")


def test_loss_that_is_not_finite_names_step_and_checkpoint(tmp_path, monkeypatch):
    real = TrainingStep.__call__

    def broken(self, state, *arguments):
        state, metrics = real(self, state, *arguments)
        return state, metrics._replace(loss=metrics.loss * np.nan) if int(state.step) == 4 else metrics

    monkeypatch.setattr(TrainingStep, "__call__", broken)
    with pytest.raises(FloatingPointError, match=r"step 4: the loss is nan.*good checkpoint is that of step 2"):
        run("encoder-bert", tmp_path / "run")
    assert not (tmp_path / "run/checkpoints/4").exists()


def test_full_disk_is_named_and_earlier_checkpoints_stay(tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=1)
    with pytest.raises(OSError, match=r"No space left.*the last one is that of step 2"):
        kill_at(monkeypatch, 4, tmp_path / "run", lambda: monkeypatch.setattr(shutil, "disk_usage", lambda path: full))
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["2"]


def test_best_checkpoint_is_given_and_the_run_stops_early(tmp_path, monkeypatch):
    values = iter([0.1, 0.3, 0.2, 0.2, 0.9])
    monkeypatch.setattr(trainer, "open_set", lambda path: path)
    monkeypatch.setattr(
        trainer,
        "evaluate",
        lambda score, data, measures: Evaluation(
            dict.fromkeys(measures, next(values)) | {"RR@10": score(PAIRS[:1])[0]}, {}, {}
        ),
    )
    result = run(
        "encoder-bert", tmp_path / "run", max_steps=8, eval_data="set", eval_steps=1, early_stopping_patience=2
    )
    assert (result.step, result.steps) == (1, 3)
    assert [point["nDCG@10"] for point in result.evaluations] == [0.1, 0.3, 0.2, 0.2]
    # The model is the one whose score was evaluated after step 1.
    found = load(result.model).compute_score(PAIRS[:1])[0]
    assert found == pytest.approx(result.evaluations[1]["RR@10"], abs=1e-6)


def test_lora_adapter_and_merged_model_score_alike(tmp_path):
    result = run("encoder-bert", tmp_path / "run", use_lora=True, lora_rank=4, export=["adapter", "pytorch"])
    scores = load(result.model).compute_score(PAIRS)
    adapted = load(tmp_path / "run/pytorch").compute_score(PAIRS)
    assert largest_difference(scores, adapted) < 1e-6
    assert largest_difference(scores, load(CASES / "encoder-bert").compute_score(PAIRS)) > 1e-3
    config = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text(encoding="utf-8"))
    assert config["modules_to_save"] == ["bert.pooler.dense", "classifier"]
    tensors = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    assert tensors["base_model.model.bert.encoder.layer.0.output.dense.lora_A.weight"].shape[0] == 4


def test_adapter_of_layers_and_heads_is_read_by_peft_path(tmp_path):
    case = "layerwise-minicpm"
    result = run(
        case, tmp_path / "run", use_lora=True, lora_rank=4, max_steps=2, passage_max_len=96, export=["adapter"]
    )
    scores = load(result.model).compute_score(PAIRS[:8])
    adapted = load(CASES / case, peft_path=str(tmp_path / "run/adapter")).compute_score(PAIRS[:8])
    assert largest_difference(scores, adapted) < 1e-5
    assert largest_difference(scores, load(CASES / case).compute_score(PAIRS[:8])) > 1e-4


def test_lightweight_is_trained_compressed_and_scored_by_its_own_heads(tmp_path):
    result = run(
        "lightweight-gemma2", tmp_path / "run", max_steps=3, compress_layers=[1], compress_ratios=[2],
        learning_rate=1e-4,
    )  # fmt: skip
    assert result.compiled == 2  # with and without compression, at one length
    model = load(result.model)
    assert model.settings.head_index == "layer"
    before = load(CASES / "lightweight-gemma2").params["head"]
    assert np.all(np.abs(np.asarray(model.params["head"]) - np.asarray(before)).max(axis=-1) > 0)


def test_body_without_head_gets_one(tmp_path):
    """As a BERT is saved alone: its tensors have no prefix, and there is no classifier."""
    source, raw = CASES / "encoder-bert", tmp_path / "raw"
    shutil.copytree(source, raw, ignore=shutil.ignore_patterns("expected.json"))
    tensors = load_file(raw / "model.safetensors")
    bare = {name.removeprefix("bert."): array for name, array in tensors.items() if name.startswith("bert.")}
    save_file(bare | {"cls.predictions.bias": np.zeros(3, np.float32)}, raw / "model.safetensors")
    config = json.loads((raw / "config.json").read_text(encoding="utf-8"))
    (raw / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}), encoding="utf-8")
    result = run(raw, tmp_path / "run", from_raw=True, max_steps=1, learning_rate=1e-8)
    found, expected = params_of(result.model), params_of(source)
    for path in found.keys() - {"head.out_proj.kernel", "head.out_proj.bias"}:
        np.testing.assert_allclose(found[path], expected[path], atol=1e-6, err_msg=path)
    assert 0.01 < np.std(found["head.out_proj.kernel"]) < 0.03
    del bare["embeddings.LayerNorm.weight"]
    save_file(bare, raw / "model.safetensors")
    with pytest.raises(ValueError, match=r"bert.embeddings.LayerNorm.weight is missing"):
        run(raw, tmp_path / "damaged", from_raw=True)


def test_master_weights_are_float32_under_bfloat16(tmp_path):
    result = run("encoder-bert", tmp_path / "run", bf16=True, max_steps=2, learning_rate=1e-6)
    kernel, before = (params_of(path)["layers.output.kernel"] for path in (result.model, CASES / "encoder-bert"))
    assert kernel.dtype == np.float32
    assert 0 < np.abs(kernel - before).max() < 1e-4  # less than bfloat16 could hold beside most weights


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"loss 'hinge' is not one of"):
        settings_of("out", loss="hinge")
    with pytest.raises(ValueError, match=r"save_steps is 0; it must be at least 1"):
        settings_of("out", save_steps=0)
    with pytest.raises(TypeError, match=r"learning_rate is '1e-5'; it must be float"):
        settings_of("out", learning_rate="1e-5")
    with pytest.raises(ValueError, match=r"compress_ratios \[3\]"):
        settings_of("out", compress_ratios=[3])


def test_two_processes_train_as_one_with_two_devices(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = {
        "train_group_size": 3, "query_max_len": 16, "passage_max_len": 32, "max_steps": 2,
        "per_device_train_batch_size": 1,
    }  # fmt: skip
    alone = TrainingSettings(output_dir=str(tmp_path / "alone"), devices=["cpu:0", "cpu:1"], **options)
    train(str(CASES / "encoder-bert"), file, alone)
    config = tmp_path / "run.json"
    config.write_text(json.dumps(options), encoding="utf-8")
    command = [sys.executable, "-c", "import sys; from flax_rerank.cli import main; sys.exit(main(sys.argv[1:]))"]
    command += ["train", str(config), "--model-name-or-path", str(CASES / "encoder-bert"), "--train-data", str(file)]
    command += ["--output-dir", str(tmp_path / "together"), "--coordinator", address, "--num-processes", "2"]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    }
    processes = [
        subprocess.Popen([*command, "--process-id", str(index)], env=environment, stderr=subprocess.PIPE, text=True)
        for index in range(2)
    ]
    messages = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], messages
    assert points(tmp_path / "together") == points(tmp_path / "alone")
    expected = params_of(tmp_path / "alone/model")
    for path, array in params_of(tmp_path / "together/model").items():
        np.testing.assert_array_equal(array, expected[path], path)


def test_finished_run_writes_its_model_again(undisturbed):
    out, result = undisturbed
    before = params_of(result.model)
    shutil.rmtree(result.model)
    assert run("encoder-bert", out).step == 6
    for path, array in params_of(result.model).items():
        np.testing.assert_array_equal(array, before[path], path)
