"""`flax-rerank train`: options, a file of options, and what is printed."""

import json

import pytest
from reference_cases import CASES

from flax_rerank.cli import main

ROW = {"query": "a b", "pos": ["a b c"], "neg": ["d e f"]}


def test_file_of_options_and_an_option_that_counts_more(tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join([json.dumps(ROW)] * 3), encoding="utf-8")
    config = tmp_path / "run.toml"
    config.write_text(
        f'model_name_or_path = "{CASES / "encoder-bert"}"\ntrain_data = ["{data}"]\n'
        f'output_dir = "{tmp_path / "run"}"\n'
        'train_group_size = 2\nlearning_rate = 1e-5\nnum_train_epochs = 3\ndevices = "cpu:0"\n',
        encoding="utf-8",
    )
    assert main(["train", str(config), "--max-steps", "2", "--passage-max-len", "24"]) == 0
    assert f"{tmp_path / 'run/model'}: the parameters after step 2 of 2" in capsys.readouterr().out
    stored = json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))
    assert (stored["settings"]["learning_rate"], stored["settings"]["passage_max_len"]) == (1e-5, 24)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.toml", "lerning_rate = 1", "run.toml: lerning_rate: no such option"),
        ("run.json", "{", "run.json is not JSON"),
        ("run.yaml", "a: 1", "run.yaml is neither .json nor .toml"),
        ("run.json", '{"output_dir": "x"}', "give --model-name-or-path and --train-data"),
    ],
)
def test_file_of_options_at_fault_is_named(tmp_path, capsys, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert main(["train", str(tmp_path / name)]) == 1
    assert message in capsys.readouterr().err
