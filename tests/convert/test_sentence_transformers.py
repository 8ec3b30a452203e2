"""Folders that sentence-transformers saved: modules, prompts and activation; what is not understood is named."""

import json
import shutil

import numpy as np
import pytest
from reference_cases import CASES, load_case

from flax_rerank import CheckpointError, FlaxAutoReranker
from flax_rerank.conversion import convert, export_checkpoint
from flax_rerank.spec import open_spec

MODULE = "sentence_transformers.base.modules.transformer.Transformer"
IDENTITY, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"


@pytest.fixture
def ettin(tmp_path):
    """A copy of a folder with modules, to be changed."""
    return shutil.copytree(CASES / "encoder-ettin", tmp_path / "ettin")


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def change(path, **fields):
    write(path, json.loads(path.read_text(encoding="utf-8")) | fields)


def cross_encoder(folder, activation, **settings):
    """The BERT case as CrossEncoder saves a model that has its head in the Transformer module."""
    shutil.copytree(CASES / "encoder-bert", folder)
    write(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": MODULE}])
    write(folder / "sentence_bert_config.json", {"transformer_task": "sequence-classification"})
    write(folder / "config_sentence_transformers.json", {"activation_fn": activation, **settings})
    return folder


def test_scores_are_those_of_predict_and_the_way_back_keeps_all_files(tmp_path, reranker):
    folder = cross_encoder(tmp_path / "st", SIGMOID, prompts={"q": "find: "}, default_prompt_name="q")
    pairs = load_case("encoder-bert").pairs[:2]
    prompted = [(f"find: {query}", passage) for query, passage in pairs]
    expected = reranker("encoder-bert").compute_score(prompted, normalize=True, truncation="longest_first")
    model = FlaxAutoReranker.from_finetuned(folder, devices="cpu:0")
    assert model.compute_score(pairs) == expected
    convert(str(folder), tmp_path / "flax")
    assert FlaxAutoReranker.from_finetuned(tmp_path / "flax", devices="cpu:0").compute_score(pairs) == expected
    convert(str(folder), tmp_path / "logits", normalize=False)
    assert FlaxAutoReranker.from_finetuned(tmp_path / "logits").settings.normalize is False
    for _ in range(2):  # the second time it is replaced
        export_checkpoint(tmp_path / "flax", tmp_path / "out", overwrite=True)
    for file in folder.glob("*.json"):
        if file.name != "expected.json":
            assert json.loads((tmp_path / "out" / file.name).read_text()) == json.loads(file.read_text())


@pytest.mark.parametrize(("mark", "normalize"), [(IDENTITY, False), (SIGMOID, True)])
def test_the_older_layout_has_its_activation_in_config_json(tmp_path, mark, normalize):
    folder = shutil.copytree(CASES / "encoder-bert", tmp_path / "model")
    for fields in ({"sbert_ce_default_activation_function": mark}, {"sentence_transformers": {"activation_fn": mark}}):
        shutil.copy(CASES / "encoder-bert" / "config.json", folder)
        change(folder / "config.json", **fields)
        assert open_spec(str(folder)).settings.normalize is normalize
        assert open_spec(str(folder), normalize=not normalize).settings.normalize is not normalize


def test_an_unknown_activation_is_named(tmp_path):
    folder = cross_encoder(tmp_path / "st", "my_code.Cubed")
    with pytest.raises(ValueError, match=r"the activation 'my_code.Cubed' is not supported"):
        open_spec(str(folder))


def test_mean_pooling_in_its_older_spelling(ettin):
    (ettin / "1_Pooling" / "config.json").unlink()
    flags = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    write(ettin / "1_Pooling" / "config.json", {"word_embedding_dimension": 48, **flags})
    assert open_spec(str(ettin)).readout.position == "mean"
    score = FlaxAutoReranker.from_finetuned(ettin, devices="cpu:0").compute_score(("panda", "a bear"))
    assert np.isfinite(score).all()


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "max"}, r"1_Pooling/config.json: pooling_mode is 'max'"),
        ("2_Dense/config.json", {"activation_function": "x.Y"}, r"2_Dense/config.json: activation_function 'x.Y'"),
        ("2_Dense/config.json", {"use_residual": True}, r"2_Dense/config.json: use_residual = True is not supported"),
        ("2_Dense/config.json", {"scale": 2}, r"2_Dense/config.json: scale = 2 is not understood"),
        ("2_Dense/config.json", {"in_features": "48"}, r"2_Dense/config.json: in_features is '48'"),
        ("3_LayerNorm/config.json", {"dimension": 40}, r"3_LayerNorm/config.json: dimension = 40 is not supported"),
        ("4_Dense/config.json", {"out_features": 3}, r"4_Dense/config.json: out_features is 3; a reranker gives one"),
        ("4_Dense/config.json", {"module_output_name": "x"}, r"4_Dense/config.json: module_output_name = 'x'"),
        ("sentence_bert_config.json", {"do_lower_case": True}, r"sentence_bert_config.json: do_lower_case = True"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, r"transformer_task = 'fill-mask'"),
    ],
)
def test_a_field_of_a_module_that_is_not_understood_is_named(ettin, file, fields, message):
    change(ettin / file, **fields)
    with pytest.raises(ValueError, match=message):
        open_spec(str(ettin))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "sentence_transformers.models.Normalize"}, "ends with Normalize: it is an embedding model"),
        ({"type": "sentence_transformers.models.Pooling"}, "ends with Pooling: it is an embedding model"),
        ({"type": "sentence_transformers.models.WordWeights"}, r"the module sentence_transformers.models.WordWeights"),
        ({"type": "my_code.Dense"}, r"the module my_code.Dense is not supported; only Transformer, Pooling"),
        ({"path": "../4_Dense"}, r"cannot be in the folder '../4_Dense'"),
        ({"type": "sentence_transformers.models.LayerNorm"}, "with Pooling, Dense, LayerNorm, LayerNorm is not"),
        ({"type": 3}, "type and path must be strings"),
    ],
)
def test_a_module_that_is_not_understood_is_named(ettin, entry, message):
    modules = json.loads((ettin / "modules.json").read_text())
    modules[-1] |= entry
    write(ettin / "modules.json", modules)
    with pytest.raises(ValueError, match=message):
        open_spec(str(ettin))


def test_a_missing_file_of_a_module_is_named(ettin):
    (ettin / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights in .*2_Dense"):
        FlaxAutoReranker.from_finetuned(ettin)
    (ettin / "2_Dense" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"modules.json has the module 2_Dense, .* no 2_Dense/config.json"):
        open_spec(str(ettin))


def test_a_body_without_modules_is_an_embedding_model(ettin):
    (ettin / "modules.json").unlink()
    with pytest.raises(ValueError, match="ModernBertModel is an embedding model"):
        open_spec(str(ettin))


def test_a_module_of_another_size_is_refused_by_its_tensor(ettin):
    change(ettin / "2_Dense" / "config.json", out_features=40)
    change(ettin / "3_LayerNorm" / "config.json", dimension=40)
    change(ettin / "4_Dense" / "config.json", in_features=40)
    with pytest.raises(CheckpointError, match=r"tensor 2_Dense/linear.weight has shape \[48, 48\]"):
        FlaxAutoReranker.from_finetuned(ettin)
