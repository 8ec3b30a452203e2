"""Settings: one field says everything about an argument."""

import argparse
import dataclasses
import inspect
import json
import re

import numpy as np
import pytest
from reference_cases import CASES, load_case

from flax_rerank import CheckpointError, FlaxAutoReranker, FlaxLLMReranker, FlaxReranker, auto, rerankers
from flax_rerank.cli.loading import add_settings, given_settings
from flax_rerank.rerankers.arguments import takes_overrides, takes_settings
from flax_rerank.rerankers.base import AbsReranker
from flax_rerank.settings import (
    SETTINGS,
    CallSettings,
    EncoderSettings,
    LightweightSettings,
    RerankerModelClass,
    setting,
)
from flax_rerank.text import prompts

several_pieces = pytest.mark.filterwarnings("ignore:.* tokens to this tokenizer:UserWarning")
PAIRS = load_case("encoder-bert").pairs[:3]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtendedCall(CallSettings):
    """An invented setting."""

    temperature: float = setting(1.0, "divides the logits", kept=True, metavar="T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extended(ExtendedCall, EncoderSettings):
    """The encoder's settings with it."""

    call = ExtendedCall


class ExtendedReranker(AbsReranker):
    """A reranker with the invented setting."""

    model_class = "encoder-only-base"

    @takes_settings(Extended)
    def __init__(self, model_name_or_path, **settings):
        self._open(model_name_or_path, settings)

    @takes_overrides(ExtendedCall)
    def compute_score(self, sentence_pairs, **overrides):
        temperature = self.settings.override(**overrides).temperature
        return [score / temperature for score in self._compute_score(sentence_pairs, overrides)]

    @takes_overrides(ExtendedCall)
    def score(self, sentence_pairs, **overrides):
        return self._score(sentence_pairs, overrides)


@pytest.fixture
def extended(monkeypatch):
    """The invented setting is one field; nothing else names it but the code that uses it."""
    monkeypatch.setitem(SETTINGS, RerankerModelClass.ENCODER_ONLY_BASE, Extended)
    monkeypatch.setitem(auto.RERANKER_CLASS_MAPPING, RerankerModelClass.ENCODER_ONLY_BASE, ExtendedReranker)
    monkeypatch.setattr(
        "flax_rerank.cli.loading.ALL_FIELDS", {field.name: field for field in dataclasses.fields(Extended)}
    )


def test_a_new_setting_is_an_argument_an_override_an_option_and_part_of_the_checkpoint(extended, tmp_path):
    bert = str(CASES / "encoder-bert")
    plain = FlaxAutoReranker.from_finetuned(bert, devices="cpu:0").compute_score(PAIRS)
    reranker = FlaxAutoReranker.from_finetuned(bert, devices="cpu:0", temperature=2.0)
    assert reranker.compute_score(PAIRS) == [score / 2 for score in plain]
    assert reranker.compute_score(PAIRS, temperature=4.0) == [score / 4 for score in plain]
    assert inspect.signature(ExtendedReranker).parameters["temperature"].default == 1.0

    parser = argparse.ArgumentParser()
    add_settings(parser, lambda field: True)
    assert "divides the logits" in parser.format_help()
    assert given_settings(parser.parse_args(["--temperature", "3"])) == {"temperature": 3.0}

    reranker.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    assert config["scoring"] == {"temperature": 2.0}
    loaded = FlaxAutoReranker.from_finetuned(str(tmp_path / "saved"), devices="cpu:0")
    assert loaded.compute_score(PAIRS) == reranker.compute_score(PAIRS)


def test_every_setting_of_the_user_has_an_option_with_help():
    parser = argparse.ArgumentParser()
    add_settings(parser, lambda field: True)
    options = {action.dest: action.help for action in parser._actions}
    without = {
        *("use_fp16", "use_bf16", "trust_remote_code", "sharding_rules", "show_progress_bar", "passage_max_length"),
        "calibration",
    }
    names = {field.name for kind in SETTINGS.values() for field in dataclasses.fields(kind)}
    assert set(options) - {"help"} == names - without
    assert all(options.values())
    given = parser.parse_args(["--query-instruction-format", "{}: {}", "--query-instruction", "Q"])
    assert given_settings(given) == {"query_instruction_format": "{}: {}", "query_instruction_for_rerank": "Q"}


@pytest.mark.parametrize("reranker", auto.RERANKER_CLASS_MAPPING.values(), ids=lambda reranker: reranker.__name__)
def test_signatures_are_those_of_the_settings(reranker):
    kind = SETTINGS[RerankerModelClass(reranker.model_class)]
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    parameters = dict(inspect.signature(reranker).parameters)
    del parameters["model_name_or_path"]
    assert {name: parameter.default for name, parameter in parameters.items()} == defaults
    for method in (reranker.compute_score, reranker.score):
        assert [*inspect.signature(method).parameters][:2] == ["self", "sentence_pairs"]
        assert [*inspect.signature(method).parameters][2:] == kind.call.call_names()


def test_flagembeddings_positional_arguments_keep_their_order():
    first = {
        FlaxLLMReranker: [
            *("model_name_or_path", "peft_path", "use_fp16", "use_bf16", "query_instruction_for_rerank"),
            *("query_instruction_format", "passage_instruction_for_rerank", "passage_instruction_format"),
            *("cache_dir", "trust_remote_code", "devices", "prompt", "batch_size", "query_max_length", "max_length"),
            "normalize",
        ],
        rerankers.LightWeightFlaxLLMReranker: [
            *("model_name_or_path", "peft_path", "use_fp16", "use_bf16", "query_instruction_for_rerank"),
            *("query_instruction_format", "passage_instruction_for_rerank", "passage_instruction_format"),
            *("cache_dir", "trust_remote_code", "devices", "cutoff_layers", "compress_layers", "compress_ratio"),
            *("prompt", "batch_size", "query_max_length", "max_length", "normalize"),
        ],
    }
    for reranker, names in first.items():
        parameters = inspect.signature(reranker).parameters.values()
        assert [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD] == names
    assert [*inspect.signature(rerankers.LightWeightFlaxLLMReranker.compute_score).parameters][2:10] == [
        *("batch_size", "query_max_length", "max_length", "cutoff_layers"),
        *("compress_layer", "compress_layers", "compress_ratio", "prompt"),
    ]


def test_positional_arguments_count(reranker):
    model = reranker("encoder-bert")
    assert model.compute_score(PAIRS, 2, None, 64) == model.compute_score(PAIRS, batch_size=2, max_length=64)


# A prompt is one entry of a table


@several_pieces
def test_a_new_prompt_is_one_entry_of_the_table(monkeypatch, reranker, tmp_path):
    invented = prompts.PromptFormat(
        prefix=("Judge: ",),
        middle=(" | ",),
        suffix=("\n", "Answer:"),
        special_tokens="bos",
        positive="true",
        negative="false",
    )
    monkeypatch.setitem(prompts.PROMPT_FORMATS, "invented", invented)
    model = FlaxAutoReranker.from_finetuned(
        str(CASES / "decoder-qwen2"),
        devices="cpu:0",
        prompt_format=dataclasses.replace(invented, special_tokens="none"),
        max_length=40,
        query_instruction_for_rerank=None,
        passage_instruction_for_rerank=None,
    )
    encode = model.spec.tokenizer.encode
    ids = model.prepare([("what is it", "a bear")]).pairs.ids(0).tolist()
    pieces = ("Judge: ", "what is it", " | ", "a bear", "\n", "Answer:")
    assert ids == [token for piece in pieces for token in encode(piece).tolist()]
    assert model.score([("q", "word " * 100)]).tokens.tolist() == [40]
    assert model.spec.readout.tokens == tuple(int(encode(word)[0]) for word in ("true", "false"))
    # By its name, and kept in a checkpoint by value.
    llama = FlaxAutoReranker.from_finetuned(str(CASES / "decoder-llama"), devices="cpu:0", prompt_format="invented")
    assert llama.spec.prompt_format == invented
    model.save(tmp_path / "saved")
    loaded = FlaxAutoReranker.from_finetuned(str(tmp_path / "saved"), devices="cpu:0")
    assert loaded.compute_score(PAIRS) == model.compute_score(PAIRS)


def test_an_unknown_prompt_format_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="prompt_format 'nothing' is not one of pair, texts, flag-llm"):
        FlaxAutoReranker.from_finetuned(str(CASES / "decoder-qwen2"), prompt_format="nothing")


# Types and ranges


@pytest.mark.parametrize(
    ("name", "value", "must"),
    [
        ("max_length", "64", "int"),
        ("max_length", 64.0, "int"),
        ("max_length", float("nan"), "int"),
        ("max_length", True, "int"),
        ("max_length", None, "int"),
        ("batch_size", [8], "int"),
        ("query_max_length", "12", "int or None"),
        ("normalize", "False", "bool"),
        ("normalize", 1, "bool"),
        ("query_instruction_for_rerank", 7, "str or None"),
        ("query_instruction_format", None, "str"),
        ("cutoff_layers", [2, "4"], "int or a list of int or None"),
        ("cutoff_layers", {2, 4}, "int or a list of int or None"),
        ("compress_ratio", 2.0, "int"),
        ("prompt", b"x", "str or None"),
        ("use_bf16", "yes", "bool"),
        ("mesh", 3, "str or Mapping or Mesh or None"),
        ("cutoff_layers", np.array(2), "int or a list of int or None"),
    ],
)
def test_a_setting_of_another_type_is_named_with_its_value(name, value, must):
    with pytest.raises(TypeError, match=re.escape(f"{name} is {value!r}; it must be {must}")):
        LightweightSettings(**{name: value})


def test_numbers_and_lists_of_numpy_become_plain_ones():
    settings = LightweightSettings(
        max_length=np.int64(64), cutoff_layers=np.asarray([2, 4]), compress_layers=range(1, 3), batch_size=np.int32(8)
    )
    assert json.loads(json.dumps(settings.kept())) == {
        "max_length": 64, "cutoff_layers": [2, 4], "compress_layers": [1, 2],
    }  # fmt: skip
    assert type(settings.batch_size) is int


def test_the_old_and_the_new_name_of_a_setting_do_not_go_together():
    with pytest.raises(TypeError, match="compress_layer is the old name of compress_layers: give one of them"):
        LightweightSettings().override(compress_layer=[1], compress_layers=[2])


@pytest.mark.parametrize("name", ["batch_size", "max_length", "query_max_length"])
@pytest.mark.parametrize("value", [0, -1, 10**30])
def test_a_number_out_of_range_is_named_with_its_value(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be at least 1"):
        EncoderSettings(**{name: value})


@pytest.mark.parametrize("format_", ["{0.__class__}", "{}{}{}", "{query}", "{!r}{}", "{:>9}", "{", "{2}", "{}{1}"])
def test_a_format_takes_the_instruction_and_the_text_only(format_):
    with pytest.raises(ValueError, match=r"passage_instruction_format: the format .* takes \{\} for the instruction"):
        EncoderSettings(passage_instruction_format=format_)


@pytest.mark.parametrize("name", ["query_instruction_for_rerank", "passage_instruction_format", "prompt"])
def test_a_text_that_no_tokenizer_takes_is_named(name):
    with pytest.raises(ValueError, match=rf"^{name} holds a lone surrogate, '.ud800'"):
        LightweightSettings(**{name: "{}{}\ud800"})


@pytest.mark.parametrize("name", ["sufix", 1])
def test_a_field_that_prompt_formats_do_not_have_is_named(name):
    with pytest.raises(TypeError, match=rf"^prompt_format has no field {name!r}; it has prefix, middle, suffix"):
        LightweightSettings(prompt_format={name: "x"})


def test_a_prompt_format_that_no_tokenizer_takes_is_named():
    with pytest.raises(ValueError, match=r"^prompt_format: middle holds a lone surrogate"):
        prompts.PromptFormat(middle=("\ud800",))


@pytest.mark.parametrize(("name", "error"), [("", ValueError), ("  ", ValueError), (None, TypeError), (7, TypeError)])
def test_what_is_not_a_name_is_refused(name, error):
    with pytest.raises(error, match="the model"):
        FlaxAutoReranker.from_finetuned(name)
    with pytest.raises(error, match="the model"):
        FlaxReranker(name)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"scoring": None}, "scoring must be an object"),
        ({"source_config": [1]}, "source_config must be an object"),
        ({"model_class": "encoder"}, "model_class is 'encoder'; it must be one of encoder-only-base,"),
        ({"scoring": {"max_length": "64"}}, "scoring: max_length is '64'; it must be int"),
        ({"scoring": {"max_lenght": 64}}, "scoring: .*max_lenght"),
        ({"scoring": {"query_instruction_format": "{0.__class__}"}}, "scoring: query_instruction_format: the format"),
        ({"scoring": {"passage_instruction_format": "{}{:>2000000000}"}}, "passage_instruction_format: the format"),
    ],
)
def test_a_flax_config_that_is_damaged_names_the_field(tmp_path, reranker, changes, named):
    reranker("encoder-bert").save(tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    with pytest.raises(CheckpointError, match=named) as caught:
        FlaxAutoReranker.from_finetuned(str(tmp_path / "saved"))
    assert str(tmp_path / "saved") in str(caught.value)


# Warnings


def test_the_passage_max_length_warning_points_to_the_user_for_every_class():
    for name in ("encoder-bert", "decoder-qwen2"):
        with pytest.warns(UserWarning, match="passage_max_length has no effect") as caught:
            FlaxAutoReranker.from_finetuned(str(CASES / name), devices="cpu:0", passage_max_length=4)
        assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match="passage_max_length has no effect") as caught:
        FlaxLLMReranker(str(CASES / "decoder-qwen2"), devices="cpu:0", passage_max_length=4)
    assert [warning.filename for warning in caught] == [__file__]


def test_score_is_part_of_the_common_interface():
    assert "score" in AbsReranker.__abstractmethods__
    assert FlaxReranker.score is not AbsReranker.score
