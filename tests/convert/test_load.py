"""A checkpoint folder becomes a model whole, or an error says everything that is wrong with it."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from reference_cases import CASES, open_torch
from safetensors.numpy import load_file, save_file

from flax_rerank import CheckpointError, FlaxAutoReranker, FlaxReranker, RerankerModelClass
from flax_rerank.convert import load
from flax_rerank.convert.bert import BERT
from flax_rerank.convert.load import model_class_of, read_config
from flax_rerank.convert.rules import Rule
from flax_rerank.spec import open_spec

FLOAT32 = np.dtype(np.float32)


@pytest.fixture
def folder(tmp_path):
    """A copy of the BERT checkpoint, to be changed."""
    return shutil.copytree(CASES / "encoder-bert", tmp_path / "model")


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def change_tensors(folder, drop=(), **changes):
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({name: tensor for name, tensor in tensors.items() if name not in drop}, folder / "model.safetensors")


def zeros(*shape):
    return np.zeros(shape, np.float32)


def faults_of(folder):
    with pytest.raises(CheckpointError) as caught:
        open_torch(folder)
    for fault in caught.value.faults:
        assert fault in str(caught.value)
    return caught.value.faults


def test_a_whole_checkpoint_has_no_faults(folder):
    tensor = load_file(folder / "model.safetensors")["bert.pooler.dense.weight"]
    np.testing.assert_array_equal(open_torch(folder).read("head.dense.kernel", FLOAT32), tensor.T)


def test_a_missing_tensor_is_named(folder):
    change_tensors(folder, drop=["bert.encoder.layer.1.output.dense.bias"])
    assert faults_of(folder) == ("tensor bert.encoder.layer.1.output.dense.bias is missing",)


def test_a_missing_head_is_refused_and_not_made_up(folder):
    change_tensors(folder, drop=["classifier.weight", "classifier.bias"])
    assert sorted(faults_of(folder)) == ["tensor classifier.bias is missing", "tensor classifier.weight is missing"]


def test_a_left_over_tensor_is_named(folder):
    change_tensors(folder, **{"cls.predictions.bias": zeros(700)})
    assert faults_of(folder) == ("tensor cls.predictions.bias [700] is left over",)


def test_a_misshapen_tensor_is_named_with_both_shapes(folder):
    change_tensors(folder, **{"bert.embeddings.word_embeddings.weight": zeros(699, 32)})
    assert faults_of(folder) == (
        "tensor bert.embeddings.word_embeddings.weight has shape [699, 32], the config asks for [700, 32]",
    )


def test_weights_of_a_layer_too_many_are_named(folder):
    tensors = load_file(folder / "model.safetensors")
    extra = {name.replace("layer.1", "layer.2"): tensor for name, tensor in tensors.items() if ".layer.1." in name}
    change_tensors(folder, **extra)
    faults = faults_of(folder)
    assert len(faults) == len(extra) == 16
    for name in extra:
        assert any(f"tensor {name} " in fault and "is left over" in fault for fault in faults)


def test_a_config_with_a_layer_too_many_names_what_is_missing(folder):
    change_config(folder, num_hidden_layers=3)
    faults = faults_of(folder)
    assert len(faults) == 16
    assert all("bert.encoder.layer.2." in fault and "is missing" in fault for fault in faults)


def test_a_tensor_that_two_rules_take_is_named(folder, monkeypatch):
    doubled = dataclasses.replace(
        BERT, rules=lambda *known: (*BERT.rules(*known), Rule("classifier.bias", "head.dense.bias"))
    )
    monkeypatch.setattr(load, "FAMILIES", (doubled,))
    assert "tensor classifier.bias is used by 2 rules" in faults_of(folder)


def test_every_fault_of_a_checkpoint_stands_in_one_error(folder):
    change_tensors(
        folder,
        drop=["bert.pooler.dense.bias", "bert.encoder.layer.0.attention.self.key.weight"],
        **{
            "bert.embeddings.LayerNorm.weight": zeros(31),
            "bert.encoder.layer.0.output.dense.weight": zeros(64, 32),
            "bert.encoder.layer.7.output.dense.bias": zeros(32),
            "lora_A": zeros(2, 2),
        },
    )
    faults = faults_of(folder)
    assert sorted(faults) == [
        "tensor bert.embeddings.LayerNorm.weight has shape [31], the config asks for [32]",
        "tensor bert.encoder.layer.0.attention.self.key.weight is missing",
        "tensor bert.encoder.layer.0.output.dense.weight has shape [64, 32], the config asks for [32, 64]",
        "tensor bert.encoder.layer.7.output.dense.bias [32] is left over",
        "tensor bert.pooler.dense.bias is missing",
        "tensor lora_A [2, 2] is left over",
    ]


@pytest.mark.parametrize(
    ("name", "ignored"),
    [
        ("encoder-bert", {"bert.embeddings.position_ids": np.arange(512)[None]}),
        (
            "encoder-xlmr",
            {
                "roberta.embeddings.position_ids": np.arange(514)[None],
                "roberta.pooler.dense.weight": zeros(32, 32),
                "roberta.pooler.dense.bias": zeros(32),
            },
        ),
    ],
    ids=["bert", "xlmr"],
)
def test_tensors_without_effect_are_ignored(tmp_path, name, ignored):
    folder = shutil.copytree(CASES / name, tmp_path / name)
    change_tensors(folder, **ignored)
    plain, more = open_torch(CASES / name), open_torch(folder)
    assert plain.shapes() == more.shapes()
    assert len(plain.shapes()) > 10
    for path in plain.shapes():
        np.testing.assert_array_equal(plain.read(path, FLOAT32), more.read(path, FLOAT32))


def load_by_class(folder):
    return FlaxReranker(str(folder), devices="cpu:0")


def load_by_config(folder):
    return FlaxAutoReranker.from_finetuned(str(folder), devices="cpu:0")


@pytest.mark.parametrize("through", [load_by_class, load_by_config])
@pytest.mark.parametrize("architecture", ["BertModel", "XLMRobertaModel"])
def test_an_embedding_model_is_refused_with_the_reason(folder, architecture, through):
    change_config(folder, architectures=[architecture])
    with pytest.raises(ValueError, match=f"{architecture} is an embedding model: it has no head that could score"):
        through(folder)


@pytest.mark.parametrize("through", [load_by_class, load_by_config])
@pytest.mark.parametrize("labels", [{"id2label": {"0": "no", "1": "yes"}}, {"id2label": ..., "num_labels": 2}])
def test_a_head_of_two_labels_is_refused_with_their_number(folder, labels, through):
    change_config(folder, **labels)
    with pytest.raises(ValueError, match=r"a head with one label; config\.json has 2"):
        through(folder)


def test_a_head_of_two_labels_is_refused_where_the_config_is_silent(folder):
    change_config(folder, id2label=..., label2id=...)
    change_tensors(folder, **{"classifier.weight": zeros(2, 32), "classifier.bias": zeros(2)})
    assert faults_of(folder) == (
        "tensor classifier.bias has shape [2], the config asks for [1]",
        "tensor classifier.weight has shape [2, 32], the config asks for [1, 32]",
    )


@pytest.mark.parametrize("architecture", ["AlbertForSequenceClassification", "BertForMaskedLM"])
def test_an_architecture_that_is_not_covered_is_named_and_so_are_those_that_are(folder, architecture):
    change_config(folder, architectures=[architecture])
    with pytest.raises(NotImplementedError) as caught:
        load_by_class(folder)
    for part in (architecture, "BertForSequenceClassification", "XLMRobertaForSequenceClassification"):
        assert part in str(caught.value)


def test_a_model_type_that_is_not_covered_is_named(folder):
    change_config(folder, architectures=..., model_type="albert")
    with pytest.raises(NotImplementedError, match="albert"):
        load_by_class(folder)


def test_the_model_type_decides_where_there_is_no_architecture(folder):
    change_config(folder, architectures=...)
    assert open_spec(str(folder), RerankerModelClass.ENCODER_ONLY_BASE).config.num_hidden_layers == 2


@pytest.mark.parametrize(("value", "shown"), [(7, "7"), ("x", "'x'"), (True, "True"), ({"a": 1}, "{'a': 1}")])
def test_an_unknown_config_field_is_refused_by_name_and_value(folder, value, shown):
    change_config(folder, residual_scale=value)
    with pytest.raises(ValueError, match="not understood") as caught:
        open_torch(folder)
    assert f"residual_scale = {shown}" in str(caught.value)


@pytest.mark.parametrize("value", [None, False, [], {}])
def test_an_unknown_config_field_that_is_off_is_accepted(folder, value):
    change_config(folder, residual_scale=value)
    open_torch(folder)


@pytest.mark.parametrize("name", ["encoder-bert", "encoder-xlmr"])
def test_relative_positions_are_refused(tmp_path, name):
    folder = shutil.copytree(CASES / name, tmp_path / name)
    change_config(folder, position_embedding_type="relative_key")
    with pytest.raises(ValueError, match="position_embedding_type = 'relative_key' is not supported"):
        open_torch(folder)


def test_all_faults_of_a_config_stand_in_one_error(folder):
    change_config(folder, position_embedding_type="relative_key", is_decoder=True, odd=3, vocab_size=...)
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        open_torch(folder)
    for part in ("position_embedding_type", "is_decoder", "odd = 3", "vocab_size is missing"):
        assert part in str(caught.value)


def test_an_unknown_activation_is_refused_by_name(folder):
    change_config(folder, hidden_act="swishy")
    with pytest.raises(ValueError, match="swishy"):
        open_torch(folder)


@pytest.mark.parametrize("content", [b"{not json", b"", b"\xff\xfe\x00", b"[]", b'"text"'])
def test_a_config_that_is_no_json_object_is_refused_by_path(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="JSON") as caught:
        read_config(folder)
    assert str(folder / "config.json") in str(caught.value)


def test_a_folder_without_config_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json in") as caught:
        read_config(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"architectures": ["BertForSequenceClassification"]}, "encoder-only-base"),
        ({"architectures": ["XLMRobertaForSequenceClassification"]}, "encoder-only-base"),
        ({"architectures": ["GemmaForCausalLM"]}, "decoder-only-base"),
        ({"architectures": ["BertModel"]}, None),
        ({"architectures": None}, None),
        ({}, None),
    ],
)
def test_the_architecture_names_the_class(config, expected):
    assert model_class_of(config) == expected


def test_convert_does_not_import_the_flax_checkpoint():
    files = list(Path(load.__file__).parent.glob("*.py"))
    assert len(files) > 10
    assert [file.name for file in files if "flax_rerank.checkpoint" in file.read_text()] == []
