"""config.json of each decoder family to a config and a readout, and the refusal of what is not understood."""

import json

import pytest
from reference_cases import CASES

from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.load import FAMILIES, family_of, model_class_of
from flax_rerank.models.readout import Readout
from flax_rerank.models.rotary import RopeScaling

DECODERS = (
    "decoder-gemma",
    "decoder-gemma2",
    "decoder-llama",
    "decoder-mistral",
    "decoder-qwen2",
    "decoder-qwen3",
    "layerwise-minicpm",
    "lightweight-gemma2",
)


def fields_of(name, **changes):
    fields = json.loads((CASES / name / "config.json").read_text(encoding="utf-8")) | changes
    return {key: value for key, value in fields.items() if value is not ...}


def architecture_of(name, **changes):
    """The config and the readout of a case with some fields changed; `...` leaves a field out."""
    fields = fields_of(name, **changes)
    return family_of(fields).architecture(HFConfig(fields))


def config_of(name, **changes):
    return architecture_of(name, **changes)[0]


def readout_of(name, **changes):
    return architecture_of(name, **changes)[1]


EXPECTED = {
    "decoder-llama": {
        "vocab_size": 800,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_act": "silu",
        "query_scale": 8**-0.5,
        "norm_offset": 0.0,
        "embedding_scale": 1.0,
        "residual_scale": 1.0,
        "qk_norm": False,
        "query_key_value_bias": False,
        "mlp_bias": False,
        "sandwich_norms": False,
        "attention_softcap": None,
        "sliding_windows": (),
        "rope_scaling": None,
    },
    "decoder-mistral": {"head_dim": 16, "sliding_windows": (), "max_position_embeddings": 131072},
    "decoder-qwen2": {
        "query_key_value_bias": True,
        "attention_output_bias": False,
        "qk_norm": False,
        "head_dim": 8,
        "rope_theta": 1000000.0,
    },
    "decoder-qwen3": {
        "query_key_value_bias": False,
        "qk_norm": True,
        "head_dim": 16,
        "query_scale": 16**-0.5,
    },
    "decoder-gemma": {
        "norm_offset": 1.0,
        "embedding_scale": 32**0.5,
        "hidden_act": "gelu_pytorch_tanh",
        "head_dim": 16,
        "num_key_value_heads": 1,
        "sandwich_norms": False,
        "sliding_windows": (),
    },
    "decoder-gemma2": {
        "norm_offset": 1.0,
        "embedding_scale": 32**0.5,
        "sandwich_norms": True,
        "attention_softcap": 50.0,
        "query_scale": 16**-0.5,
        "sliding_windows": (4096, 0, 4096, 0),
    },
    "layerwise-minicpm": {
        "embedding_scale": 12.0,
        "residual_scale": 1.4 / 6**0.5,
        "norm_offset": 0.0,
    },
    "lightweight-gemma2": {
        "sandwich_norms": True,
        "attention_softcap": 50.0,
        "sliding_windows": (4096, 0, 4096, 0, 4096, 0),
    },
}


READOUTS = {
    "decoder-llama": Readout("last", "linear", layers=(2,), heads=(0,)),
    "decoder-mistral": Readout("last", "linear", layers=(2,), heads=(0,)),
    "decoder-qwen2": Readout("last", "tied", layers=(2,), heads=(0,)),
    "decoder-qwen3": Readout("last", "tied", layers=(2,), heads=(0,)),
    "decoder-gemma": Readout("last", "tied", layers=(3,), heads=(0,)),
    "decoder-gemma2": Readout("last", "tied", layers=(4,), heads=(0,), softcap=30.0),
    "layerwise-minicpm": Readout("last", "linear", layers=(2, 3, 4, 5, 6), heads=(0, 1, 2, 3, 4)),
    "lightweight-gemma2": Readout("last", "linear", layers=(2, 3, 4, 5, 6), heads=(0, 1, 2, 3, 4), softcap=30.0),
}


@pytest.mark.parametrize("name", DECODERS)
def test_the_config_of_each_family_has_the_values_of_its_file(name):
    config, readout = architecture_of(name)
    assert {field: getattr(config, field) for field in EXPECTED[name]} == EXPECTED[name]
    assert readout == READOUTS[name]


@pytest.mark.parametrize("name", DECODERS)
def test_a_config_without_architectures_goes_by_its_model_type(name):
    assert architecture_of(name, architectures=...) == architecture_of(name)
    assert model_class_of(fields_of(name, architectures=...)) is None


@pytest.mark.parametrize(
    ("name", "model_class"),
    [
        ("decoder-llama", "decoder-only-base"),
        ("layerwise-minicpm", "decoder-only-layerwise"),
        ("lightweight-gemma2", "decoder-only-lightweight"),
    ],
)
def test_an_architecture_names_its_class(name, model_class):
    assert model_class_of(fields_of(name)) == model_class


# ---- windows


def test_mistral_has_its_window_in_every_layer():
    assert config_of("decoder-mistral", sliding_window=24).sliding_windows == (24, 24)


def test_qwen2_has_its_window_from_max_window_layers_on_and_only_if_it_is_used():
    windowed = {"sliding_window": 24, "num_hidden_layers": 4, "max_window_layers": 1}
    assert config_of("decoder-qwen2", **windowed, use_sliding_window=True).sliding_windows == (0, 24, 24, 24)
    assert config_of("decoder-qwen2", **windowed, use_sliding_window=False).sliding_windows == ()


@pytest.mark.parametrize("name", ["decoder-qwen3", "decoder-gemma2", "decoder-mistral"])
def test_layer_types_say_which_layers_have_a_window(name):
    types = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    config = config_of(name, num_hidden_layers=4, sliding_window=24, layer_types=types)
    assert config.sliding_windows == (0, 24, 0, 0)


def test_a_layer_type_that_is_not_known_is_refused_by_name():
    with pytest.raises(ValueError, match=r"layer_types has chunked_attention, which is not supported"):
        config_of("decoder-qwen3", layer_types=["full_attention", "chunked_attention"])


# ---- rope


@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_rope_scaling_is_read_in_every_spelling(field, key):
    scaling = {key: "linear", "factor": 4}
    assert config_of("decoder-llama", **{field: scaling}).rope_scaling == RopeScaling("linear", 4.0, 2048)


def test_llama3_scaling_is_read_whole():
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.5,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    assert config_of("decoder-llama", rope_scaling=scaling).rope_scaling == RopeScaling("llama3", 8.0, 512, 1.5, 4.0)


def test_dynamic_scaling_starts_at_max_position_embeddings():
    scaling = {"type": "dynamic", "factor": 2.0}
    config = config_of("layerwise-minicpm", rope_scaling=scaling, max_position_embeddings=64)
    assert config.rope_scaling == RopeScaling("dynamic", 2.0, 64)


def test_rope_parameters_of_transformers_5_hold_the_base_too():
    parameters = {"rope_type": "default", "rope_theta": 500000.0}
    config = config_of("decoder-llama", rope_theta=..., rope_scaling=..., rope_parameters=parameters)
    assert config.rope_theta == 500000.0
    assert config.rope_scaling is None


@pytest.mark.parametrize("kind", ["yarn", "longrope", "su"])
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_a_scaling_that_is_not_covered_is_refused_by_name(kind, field):
    with pytest.raises(ValueError, match=f"rope scaling '{kind}' is not supported; only linear, dynamic and llama3"):
        config_of("decoder-qwen2", **{field: {"rope_type": kind, "factor": 4.0}})


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"rope_type": "linear", "factor": 2.0, "attention_factor": 1.5}, "attention_factor"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"full_attention": {"rope_type": "default", "rope_theta": 500000.0}}, "full_attention"),
    ],
    ids=["linear", "default", "for-each-kind-of-layer"],
)
def test_a_field_of_the_scaling_that_is_not_understood_is_refused_by_name(parameters, named):
    with pytest.raises(ValueError, match=f"not understood: .*{named}"):
        config_of("decoder-llama", rope_parameters=parameters)


def test_a_scaling_without_its_factor_is_refused_by_name():
    with pytest.raises(ValueError, match="factor"):
        config_of("decoder-llama", rope_scaling={"rope_type": "linear"})


# ---- heads


def test_cost_wise_heads_come_every_layer_sep_layers():
    assert readout_of("lightweight-gemma2", layer_sep=2).layers == (2, 4, 6)
    assert readout_of("lightweight-gemma2", layer_sep=2, start_layer=3).layers == (3, 5)


@pytest.mark.parametrize("layer_wise", [False, ...], ids=["false", "missing"])
def test_cost_wise_without_layer_wise_is_refused(layer_wise):
    with pytest.raises(ValueError, match="layer_wise is false: such a checkpoint has no heads that score a pair"):
        config_of("lightweight-gemma2", layer_wise=layer_wise)


@pytest.mark.parametrize("kind", ["raw", "complex"])
def test_minicpm_heads_of_vocabulary_size_score_by_their_last_row(kind):
    readout = readout_of("layerwise-minicpm", head_type=kind)
    assert (readout.head, readout.heads, readout.tokens) == ("linear", (0, 1, 2, 3, 4), (799,))
    assert readout.logit_scale == pytest.approx(12 / 36)
    single = readout_of("layerwise-minicpm", head_type=kind, head_multi=False, tie_word_embeddings=True)
    assert (single.head, single.heads) == ("tied" if kind == "raw" else "linear", (0,) * 5)


def test_a_minicpm_head_of_another_type_is_refused_by_name():
    with pytest.raises(ValueError, match="head_type = 'mlp' is not supported; only 'simple', 'raw', 'complex'"):
        config_of("layerwise-minicpm", head_type="mlp")


# ---- what is not understood


@pytest.mark.parametrize("name", DECODERS)
def test_an_unknown_field_is_refused_by_name_and_value(name):
    with pytest.raises(ValueError, match=r"attention_sinks = 4 is not understood and may change the scores"):
        config_of(name, attention_sinks=4)


@pytest.mark.parametrize("value", [0, 0.0, ""])
def test_an_unknown_field_is_refused_whatever_its_value(value):
    with pytest.raises(ValueError, match=f"attention_sinks = {value!r} is not understood"):
        config_of("decoder-llama", attention_sinks=value)


@pytest.mark.parametrize("value", [None, False, [], {}])
def test_an_unknown_field_that_switches_something_off_changes_nothing(value):
    assert config_of("decoder-llama", attention_sinks=value) == config_of("decoder-llama")


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("field", ["hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads"])
def test_a_missing_field_is_refused_by_name(name, field):
    with pytest.raises(ValueError, match=f"{field} is missing"):
        config_of(name, **{field: ...})


def test_an_unknown_activation_is_refused_by_name():
    with pytest.raises(ValueError, match="hidden_act 'mish' is not supported"):
        config_of("decoder-llama", hidden_act="mish")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("decoder-llama", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; it must be a whole number"),
        ("decoder-llama", {"num_hidden_layers": True}, "num_hidden_layers is True; it must be a whole number from 1"),
        ("decoder-llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; it must be a number from 1e-30 to 1"),
        (
            "decoder-llama",
            {"hidden_size": 4, "head_dim": None},
            "hidden_size / num_attention_heads.* is 1; it must be even",
        ),
        ("decoder-llama", {"head_dim": 7}, "head_dim .* is 7; it must be even"),
        ("decoder-llama", {"rope_scaling": {"type": "linear", "factor": "2"}}, "rope scaling: factor is '2'"),
        ("decoder-llama3-rope", {"rope_scaling": {"type": "llama3", "factor": 2}}, "high_freq_factor must be above"),
        ("decoder-qwen3", {"layer_types": ["full_attention"]}, "layer_types has length 1, num_hidden_layers is 2"),
        (
            "decoder-llama",
            {"architectures": "LlamaForCausalLM"},
            "architectures is 'Llama.*'; it must be a list of strings",
        ),
        ("decoder-llama", {"id2label": 1}, "id2label is 1; it must be an object"),
        ("encoder-xlmr", {"pad_token_id": 513}, "max_position_embeddings must be above 514"),
        ("layerwise-minicpm", {"start_layer": 7}, "start_layer is 7, num_hidden_layers is 6"),
        ("lightweight-gemma2", {"start_layer": 7}, "start_layer is 7, num_hidden_layers is 6"),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_refused_by_name(name, changes, message):
    with pytest.raises(ValueError, match=message):
        config_of(name, **changes)


def test_all_faults_are_told_at_once():
    with pytest.raises(ValueError, match=r"'yarn'.*attention_sinks = 4.*logit_bias = 2"):
        config_of("decoder-qwen2", rope_scaling={"type": "yarn", "factor": 2}, attention_sinks=4, logit_bias=2)
    with pytest.raises(
        ValueError, match=r"^config.json: num_attention_heads is 0; [^;]*; hidden_size is '32'; [^;]*$"
    ):
        config_of("decoder-qwen2", hidden_size="32", num_attention_heads=0)


@pytest.mark.parametrize("fields", [{"architectures": ["PhiForCausalLM"]}, {"model_type": "phi"}])
def test_an_architecture_that_is_not_covered_is_refused_by_name(fields):
    with pytest.raises(NotImplementedError, match=r"architecture (PhiForCausalLM|phi) is not covered") as error:
        family_of(fields)
    for family in FAMILIES:
        for architecture in family.model_classes:
            assert architecture in str(error.value)


def test_an_architecture_that_is_not_covered_is_not_saved_by_its_model_type():
    with pytest.raises(NotImplementedError, match="LlamaForTokenClassification is not covered"):
        family_of({"architectures": ["LlamaForTokenClassification"], "model_type": "llama"})


def test_a_decoder_without_a_head_is_an_embedding_model():
    with pytest.raises(ValueError, match="Qwen2Model is an embedding model"):
        family_of(fields_of("decoder-qwen2", architectures=["Qwen2Model"]))


# ---- fields that are left out, and fields that are null


@pytest.mark.parametrize("name", ["decoder-gemma2", "lightweight-gemma2"])
def test_gemma2_has_caps_and_windows_unless_they_are_null(name):
    fields = ("attn_logit_softcapping", "final_logit_softcapping", "sliding_window")
    config, readout = architecture_of(name, **dict.fromkeys(fields, ...))
    assert (config.attention_softcap, readout.softcap, config.sliding_windows[:2]) == (50.0, 30.0, (4096, 0))
    config, readout = architecture_of(name, **dict.fromkeys(fields))
    assert (config.attention_softcap, readout.softcap, config.sliding_windows) == (None, None, ())


def test_mistral_has_a_window_unless_it_is_null():
    assert config_of("decoder-mistral", sliding_window=...).sliding_windows == (4096, 4096)
    assert config_of("decoder-mistral", sliding_window=None).sliding_windows == ()
