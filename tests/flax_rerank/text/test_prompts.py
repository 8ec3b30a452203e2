"""Prompt formats of published rerankers: what they refuse, and what they keep in a checkpoint."""

import json
import shutil
from dataclasses import asdict, replace

import pytest
from reference_cases import CASES, load_case

from flax_rerank import FlaxAutoReranker, auto
from flax_rerank.spec import open_spec
from flax_rerank.text.prompts import PROMPT_FORMATS, PromptFormat

QWEN = "logit-qwen3-reranker"


@pytest.fixture
def folder(tmp_path):
    """A copy of the Qwen3-Reranker case, to be changed."""
    return shutil.copytree(CASES / QWEN, tmp_path / "Qwen3-Reranker-0.6B")


def qwen(max_length=190, **settings):
    return open_spec(str(CASES / QWEN), prompt_format="qwen3-reranker", max_length=max_length, **settings)


def test_a_tokenizer_without_the_answer_is_refused(folder):
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    model = tokenizer["model"]
    model["merges"] = [merge for merge in model["merges"] if "yes" not in "".join(merge)]
    model["vocab"]["y-e-s"] = model["vocab"].pop("yes")
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(ValueError, match="the tokenizer has no token 'yes', whose logit makes the score"):
        auto.find_spec(folder, prompt_format="qwen3-reranker")


def test_a_token_beyond_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="the tokenizer has no token 9999, whose logit is to make the score"):
        open_spec(str(CASES / QWEN), prompt_format=replace(PROMPT_FORMATS["ctxl-v2"], positive=9999))


def test_a_template_that_leaves_no_room_is_refused():
    spec = qwen(max_length=60)
    with pytest.raises(ValueError, match=r"max_length 60 leaves no room .* has \d\d tokens"):
        spec.template(spec.settings)


@pytest.mark.parametrize(
    ("name", "argument"), [("flag-llm", "instruction"), ("zerank", "instruction"), ("zerank", "prompt")]
)
def test_what_a_format_has_no_place_for_is_refused(name, argument):
    spec = open_spec(str(CASES / "logit-zerank"), prompt_format=name)
    with pytest.raises(ValueError, match=f"this prompt format .*{argument}"):
        spec.template(replace(spec.settings, **{argument: "Prefer recent sources"}))


def test_texts_are_put_in_as_they_are(reranker):
    case = load_case("logit-zerank")
    model = reranker("logit-zerank", case.runs[0]["init"])
    prepared = model.prepare([("{passage} {0}", "{query} {instruction}")])
    text = "<|im_start|>system\n{passage} {0}<|im_end|>\n<|im_start|>user\n{query} {instruction}"
    assert prepared.pairs.ids(0)[:-5].tolist() == model.spec.tokenizer.encode(text).tolist()


def test_a_cut_is_reported(reranker):
    case = load_case(QWEN)
    model = reranker(QWEN, case.runs[1]["init"])
    prepared = model.prepare(case.pairs)
    assert prepared.truncated.tolist() == [tokens == 190 for tokens in prepared.tokens]
    assert 0 < prepared.truncated.sum() < len(case.pairs)


@pytest.mark.parametrize(
    "fields",
    [
        {"texts": ["{query}"]},
        {"texts": ["{passage}", "{query}"]},
        {"texts": ["{query} {passage}"]},
        {"truncation": "right"},
        {"instructed": ["{instruction} {query} {passage}"]},
    ],
)
def test_texts_without_a_query_or_a_passage_or_a_way_to_cut_them_are_refused(fields):
    with pytest.raises(ValueError, match=r"texts|truncation|instructed"):
        PromptFormat(**fields)


@pytest.mark.parametrize("name", PROMPT_FORMATS)
def test_a_format_survives_json(name):
    assert PromptFormat(**json.loads(json.dumps(asdict(PROMPT_FORMATS[name])))) == PROMPT_FORMATS[name]


def test_the_name_brings_the_format_its_length_and_its_normalisation(tmp_path):
    folder = shutil.copytree(CASES / "logit-mxbai-v2", tmp_path / "mxbai-rerank-base-v2")
    spec = auto.find_spec(folder)
    assert spec.prompt_format == replace(PROMPT_FORMATS["mxbai-v2"], normal_shift=4.5)  # half of estimated_max, 9
    assert spec.settings.max_length == 869  # 1,024 positions, of which the template takes 155
    assert spec.settings.query_instruction_for_rerank is None
    model = FlaxAutoReranker.from_finetuned(folder, devices="cpu:0")
    model.save(tmp_path / "saved")
    assert auto.find_spec(tmp_path / "saved").settings.kept() == model.settings.kept()
