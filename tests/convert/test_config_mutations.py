"""A config.json with a field of another type or size is read, or refused by the name of that field."""

import copy
import dataclasses
import json
import math
import random
import shutil

import pytest
from reference_cases import CASES

from flax_rerank.auto import find_spec
from flax_rerank.conversion import convert
from flax_rerank.conversion.inspect import inspect_folder
from flax_rerank.rerankers.call import resolve
from flax_rerank.settings import SETTINGS, RerankerModelClass
from flax_rerank.text.prompts import PromptFormat, find_prompt_format
from flax_rerank.text.tokenizer import FILES

FAMILIES = (
    *("encoder-bert", "encoder-xlmr", "decoder-llama", "decoder-llama3-rope", "decoder-mistral-window"),
    *("encoder-deberta-v2", "encoder-gte-new-ntk", "encoder-jina-v1", "encoder-modernbert-cls", "encoder-ettin"),
    *("encoder-distilbert", "encoder-electra", "encoder-modernbert-mean"),
    *("decoder-qwen2", "decoder-qwen3", "decoder-gemma", "decoder-gemma2", "layerwise-dynamic", "lightweight-sep"),
    "monot5",
)
OPTIONAL = (  # fields that some families read and that not all cases have
    *("architectures", "model_type", "id2label", "num_labels", "head_dim", "rope_theta", "rope_scaling"),
    *("rope_parameters", "layer_types", "sliding_window", "max_window_layers", "use_sliding_window"),
    *("query_pre_attn_scalar", "final_logit_softcapping", "attn_logit_softcapping", "dim_model_base", "is_decoder"),
)
VALUES = (
    *(10**9, 2**40, 10**400, -1, 0, 1, 3, 1.5, 1e-300, 1e300, math.nan, math.inf, -math.inf, True, False, None),
    *("", "2", "x" * 1000, [], [1], [None], ["x"], [[]], {}, {"x": 1}, {"0": "x", "1": "y"}),
    *({"type": "linear", "factor": 0}, {"rope_type": "llama3", "factor": 2}, {"type": 1}, {"type": []}),
    *({"type": "dynamic", "factor": math.nan}, {"type": "linear", "factor": "2"}, {"rope_theta": []}),
    *({"type": "llama3", "factor": 2, "high_freq_factor": [], "original_max_position_embeddings": -1},),
)
REFUSALS = (ValueError, NotImplementedError, OSError)


def places_in(fields, within=()):
    """The keys of every value, at every depth."""
    for name, value in fields.items():
        yield (*within, name)
        if isinstance(value, dict):
            yield from places_in(value, (*within, name))


def changed(fields, place, value):
    fields = copy.deepcopy(fields)
    inner = fields
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return fields


def mutations(fields, places, count):
    """`count` of the pairs of a place and a value, always the same ones, with the config that each makes."""
    pairs = [(place, value) for place in places for value in VALUES]
    for place, value in random.Random(0).sample(pairs, min(count, len(pairs))):
        yield place, value, changed(fields, place, value)


def refusal(folder):
    """Why the checkpoint is refused before its weights are read; None if it is not."""
    try:
        spec = find_spec(str(folder))
        resolve(spec, spec.settings)
    except REFUSALS as error:
        return str(error)
    return None


def names(message, place):
    """Whether a message names the field, or the one that holds it."""
    words = [name.rstrip("s") for name in place]
    if {"rope_scaling", "rope_parameters"} & {*place}:  # without a dynamic one, there are fewer positions
        words += ["rope scaling", "max_position_embeddings"]
    return any(word in message or word.replace("_", " ") in message for word in words)


def tokenizer_of(source, folder):
    if (source / "modules.json").is_file():
        return shutil.copytree(source, folder)
    folder.mkdir()
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return folder


@pytest.mark.filterwarnings("ignore:'Yes' is 2 tokens:UserWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_field_of_another_value_is_read_or_refused_by_name(tmp_path, name):
    fields = json.loads((CASES / name / "config.json").read_text(encoding="utf-8"))
    folder = tokenizer_of(CASES / name, tmp_path / "model")
    places = [*places_in(fields), *((extra,) for extra in OPTIONAL if extra not in fields)]
    for place, value, config in mutations(fields, places, 30):
        (folder / "config.json").write_text(json.dumps(config))
        message = refusal(folder)
        assert message is None or names(message, place), (place, value, message)
        reasons = inspect_folder(folder).reasons
        assert not [reason for reason in reasons if "something unexpected" in reason], (place, value, reasons)
        assert message is None or any(names(reason, place) for reason in reasons), (place, value, reasons)


@pytest.mark.filterwarnings("ignore:'Yes' is 2 tokens:UserWarning")
@pytest.mark.filterwarnings("ignore:passage_max_length:UserWarning")
@pytest.mark.parametrize("name", ["encoder-bert", "decoder-llama", "layerwise-minicpm", "lightweight-sep"])
def test_a_field_of_a_flax_checkpoint_is_read_or_refused_by_name(tmp_path, name):
    folder = tmp_path / "model"
    convert(str(CASES / name), folder, max_length=64)
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    setting_fields = dataclasses.fields(SETTINGS[RerankerModelClass(fields["model_class"])])
    places = [*places_in(fields), *(("scoring", field.name) for field in setting_fields)]
    if name == "decoder-llama":
        places += [("scoring", "prompt_format", field.name) for field in dataclasses.fields(PromptFormat)]
        fields["scoring"]["prompt_format"] = dataclasses.asdict(find_prompt_format("flag-llm"))
    for place, value, config in mutations(fields, places, 25):
        if place == ("format",):
            continue  # then it is not a Flax checkpoint
        (folder / "config.json").write_text(json.dumps(config))
        message = refusal(folder)
        assert message is None or names(message, place), (place, value, message)
        reasons = inspect_folder(folder).reasons
        assert not [reason for reason in reasons if "something unexpected" in reason], (place, value, reasons)
        assert message is None or any(names(reason, place) for reason in reasons), (place, value, reasons)
