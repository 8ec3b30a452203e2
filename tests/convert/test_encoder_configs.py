"""config.json of encoders: what tells families apart, and that what would give other scores is refused by name."""

import json
import shutil

import numpy as np
import pytest
from reference_cases import CASES, open_torch
from safetensors.numpy import load_file, save_file

from flax_rerank import CheckpointError, FlaxAutoReranker
from flax_rerank.convert import family_of
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.models.rotary import RopeScaling
from flax_rerank.spec import open_spec

FLOAT32 = np.dtype(np.float32)


def fields_of(name, **changes):
    fields = json.loads((CASES / name / "config.json").read_text()) | changes
    return {field: value for field, value in fields.items() if value is not ...}


def architecture_of(name, **changes):
    fields = fields_of(name, **changes)
    return family_of(fields).architecture(HFConfig(fields))


def test_jina_bert_is_told_from_bert_by_its_positions():
    for names in (["JinaBertModel"], ["BertForSequenceClassification"], ...):
        config, _ = architecture_of("encoder-jina-v1", architectures=names)
        assert (config.positions, config.gated_mlp, config.segments) == ("alibi", True, False)
    with pytest.raises(ValueError, match="feed_forward_type must be 'geglu'"):
        architecture_of("encoder-jina-v1", feed_forward_type="reglu")


def test_a_jina_bert_whose_config_says_bert_is_refused_by_its_tensors(tmp_path):
    folder = shutil.copytree(CASES / "encoder-jina-v1", tmp_path / "model")
    fields = {"position_embedding_type": "absolute", "architectures": ["BertForSequenceClassification"]}
    hidden = dict.fromkeys(("feed_forward_type", "emb_pooler", "attn_implementation"), ...)
    (folder / "config.json").write_text(json.dumps(fields_of("encoder-jina-v1", **fields, **hidden)))
    with pytest.raises(CheckpointError, match=r"mlp.gated_layers.weight \[128, 48\] is left over"):
        FlaxAutoReranker.from_finetuned(folder)


def test_its_sibling_with_other_tensors_is_refused_by_them(tmp_path):
    folder = shutil.copytree(CASES / "encoder-jina-v1", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.replace("gated_layers", "up_gated_layer"): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"mlp.up_gated_layer.weight \[128, 48\] is left over"):
        FlaxAutoReranker.from_finetuned(folder)


@pytest.mark.parametrize(
    "mark", [{"auto_map": ..., "use_flash_attn": ...}, {"auto_map": ..., "model_type": "xlm-roberta"}]
)
def test_jina_reranker_v2_is_told_from_xlm_roberta(mark):
    family = family_of(fields_of("encoder-jina-v2", **mark))
    config, readout = architecture_of("encoder-jina-v2", **mark)
    assert "roberta.emb_ln.weight" in [rule.torch for rule in family.rules(config, readout, {})]
    assert config.position_offset == 2


def test_jina_reranker_v2_is_told_from_xlm_roberta_by_its_tensors_whatever_its_config_says(tmp_path):
    folder = shutil.copytree(CASES / "encoder-jina-v2", tmp_path / "model")
    as_xlm_roberta = fields_of("encoder-jina-v2", auto_map=..., use_flash_attn=..., model_type="xlm-roberta")
    (folder / "config.json").write_text(json.dumps(as_xlm_roberta))
    found = FlaxAutoReranker.from_finetuned(folder, devices="cpu:0")
    own = FlaxAutoReranker.from_finetuned(CASES / "encoder-jina-v2", devices="cpu:0")
    assert all((found.params[path] == array).all() for path, array in own.params.items())
    as_jina = fields_of("encoder-xlmr", model_type=..., use_flash_attn=True)
    folder = shutil.copytree(CASES / "encoder-xlmr", tmp_path / "other")
    (folder / "config.json").write_text(json.dumps(as_jina))
    with pytest.raises(ValueError, match="use_flash_attn = True is not understood"):
        open_spec(str(folder))


def test_gte_as_transformers_5_saves_it(tmp_path):
    """It puts `new.` before its own names if it read the original ones, and has only its own if it made the model."""
    own = open_torch(CASES / "encoder-gte-new")
    tensors = load_file(CASES / "encoder-gte-new" / "model.safetensors")
    for before in ("new.", ""):
        folder = shutil.copytree(CASES / "encoder-gte-new", tmp_path / f"saved-{before}")
        renamed = {before + name.replace("new.", "gte."): tensor for name, tensor in tensors.items()}
        save_file(renamed, folder / "model.safetensors")
        found = open_torch(folder)
        for path in own.shapes():
            np.testing.assert_array_equal(found.read(path, FLOAT32), own.read(path, FLOAT32))
        save_file(renamed | tensors, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"gte.embeddings.LayerNorm.bias \[48\] is left over"):
            open_torch(folder)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "yarn", "factor": 8.0}, "rope scaling 'yarn' is not supported; only linear and ntk"),
        ({"type": "ntk", "factor": 8.0, "mixed_b": 2}, "rope scaling has fields that are not understood: mixed_b"),
        ({"type": "ntk"}, "rope scaling 'ntk' has no factor"),
    ],
)
def test_a_scaling_of_gte_that_is_not_understood_is_named(scaling, message):
    with pytest.raises(ValueError, match=message):
        architecture_of("encoder-gte-new", rope_scaling=scaling)


def test_gte_in_both_spellings():
    spelt_new, _ = architecture_of("encoder-gte-new-ntk")
    assert (spelt_new.rope_theta, spelt_new.rope_scaling) == (20000, RopeScaling("ntk", 8.0, 8192))
    parameters = {"rope_type": "linear", "factor": 8 ** (1 / 6), "rope_theta": 160000.0}
    changes = {"rope_scaling": ..., "rope_theta": ..., "rope_parameters": parameters, "model_type": "gte"}
    names = {"architectures": ["GteForSequenceClassification"]}
    spelt_gte, _ = architecture_of("encoder-gte-new-ntk", **changes, **names)
    assert (spelt_gte.rope_theta, spelt_gte.rope_scaling) == (160000, RopeScaling("linear", 8 ** (1 / 6), 8192))


def test_modernbert_in_the_spelling_of_transformers_4_and_5():
    old, readout = architecture_of("encoder-modernbert-mean")
    new, _ = architecture_of("encoder-modernbert-cls")
    assert (old, readout.position) == (new, "mean")
    assert (old.sliding_windows, old.rope_theta, old.sliding_rope_theta) == ((0, 9, 9, 0), 160000.0, 10000.0)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("modernbert-mean", {"classifier_pooling": "max"}, "classifier_pooling = 'max' is not supported"),
        ("modernbert-mean", {"layer_types": ["full_attention"]}, "layer_types has length 1, num_hidden_layers is 4"),
        ("modernbert-cls", {"rope_parameters": {"x": {}}}, "rope_parameters has fields that are not understood: x"),
        (
            "modernbert-cls",
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "rope_parameters: full_attention = {'rope_type': 'yarn'} is not supported",
        ),
        ("deberta-v2", {"position_buckets": -1}, "position_buckets is -1"),
        ("deberta-v2", {"share_att_key": False}, "share_att_key must be true"),
        ("deberta-v2", {"pos_att_type": ["p2p"]}, "pos_att_type has .*p2p"),
        ("deberta-v2", {"conv_kernel_size": 3}, "conv_kernel_size = 3 is not understood"),
        ("gte-new", {"logn_attention_scale": True}, "logn_attention_scale = True is not supported"),
        ("gte-new", {"pack_qkv": False}, "pack_qkv = False is not supported"),
        ("distilbert", {"n_heads": 5}, "hidden_size 48 is not a multiple of num_attention_heads 5"),
    ],
)
def test_a_field_that_would_give_other_scores_is_named(name, changes, message):
    with pytest.raises(ValueError, match=message):
        architecture_of(f"encoder-{name}", **changes)


def test_attention_to_distances_may_be_spelt_as_one_string():
    assert architecture_of("encoder-deberta-v2", pos_att_type="p2c|c2p") == architecture_of("encoder-deberta-v2")


def test_small_embeddings_of_electra_are_projected():
    config, readout = architecture_of("encoder-electra", embedding_size=16)
    assert config.embedding_size == 16
    rules = family_of(fields_of("encoder-electra")).rules(config, readout, {})
    assert "embeddings.project.kernel" in [rule.flax for rule in rules]
