"""Chat templates of checkpoints: what becomes of them, and what is refused."""

import json
import shutil

import pytest
from reference_cases import CASES

from flax_rerank.spec import open_spec
from flax_rerank.text import chat_template
from flax_rerank.text.chat_template import ChatTemplateError, texts_of_template

ROLE = "{%%- set %s = (messages | selectattr('role', 'eq', '%s') | first).content -%%}"
QUERY, DOCUMENT = ROLE % ("q", "query"), ROLE % ("d", "document")
PLAIN = QUERY + DOCUMENT + "{{ q }} | {{ d }}"


@pytest.fixture
def folder(tmp_path):
    """A copy of a folder of sentence-transformers, to be changed."""
    return shutil.copytree(CASES / "logit-st-module-single", tmp_path / "anything")


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")


def test_a_template_becomes_texts():
    template = "{{ bos_token }}{% for m in messages %}\n  {{ m.role }}: {{ m.content }}\n{% endfor %}{{ q }}"
    text, instructed = texts_of_template(template, {"bos_token": "<s>"})
    assert text == "<s>  query: {query}\n  document: {passage}\n"
    assert instructed == "<s>  system: {instruction}\n  query: {query}\n  document: {passage}\n"


def test_a_template_without_a_place_for_an_instruction_takes_none():
    assert texts_of_template(PLAIN, {}) == ("{query} | {passage}", None)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely"),
        ("{{ raise_exception('only user and assistant') }}", "only user and assistant"),
        ("{% for", "TemplateSyntaxError"),
        ("{{ 'a' * 2000000 }}", "bytes"),
        ("{{ 'a' | center(9999999999999) }}", "memory|Overflow"),
        (QUERY + "{{ q }}", "leaves out the query or the document"),
        (PLAIN + "{{ d | trim }}", "changes the texts"),
        (PLAIN + "{query}", r"the words \{query\}"),
    ],
)
def test_other_templates_are_refused(template, reason):
    with pytest.raises(ChatTemplateError, match=reason):
        texts_of_template(template, {})


def test_a_template_that_does_not_end_is_stopped(monkeypatch):
    monkeypatch.setattr(chat_template, "SECONDS", 1)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ChatTemplateError, match="more than 1 seconds of the processor"):
        texts_of_template(loops + PLAIN, {})


@pytest.mark.parametrize(
    ("file", "fields", "reason"),
    [
        ("1_LogitScore/config.json", {"bias": 1.0}, "1_LogitScore/config.json: bias = 1.0 is not understood"),
        ("1_LogitScore/config.json", {"true_token_id": None}, "true_token_id is missing"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task = 'fill-mask'"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {}}}, "not supported: processing_kwargs.text"),
        ("sentence_bert_config.json", {"processing_kwargs": {"chat_template": {"chat_template": "x"}}}, "template x"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(folder, file, fields, reason):
    change(folder / file, **fields)
    with pytest.raises(ValueError, match=reason):
        open_spec(str(folder))


def test_a_missing_template_is_named(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="the chat template of the tokenizer, which is missing"):
        open_spec(str(folder))


def test_a_template_in_tokenizer_config_counts_where_there_is_no_file(folder):
    expected = open_spec(str(folder)).prompt_format
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").unlink()
    change(folder / "tokenizer_config.json", chat_template=[{"name": "default", "template": template}])
    assert open_spec(str(folder)).prompt_format == expected


def test_a_folder_says_its_length_its_prompt_and_its_activation(folder):
    spec = open_spec(str(CASES / "logit-st-module"))
    assert spec.settings.max_length == 1024  # model_max_length
    assert spec.settings.normalize
    assert (
        spec.prompt_format.instruction == "Given a web search query, retrieve relevant passages that answer the query"
    )
    assert spec.readout.tokens == (290, 280)
    change(folder / "sentence_bert_config.json", max_seq_length=77)
    spec = open_spec(str(folder))
    assert (spec.settings.max_length, spec.settings.normalize) == (77, False)
    assert spec.prompt_format.instruction == ""
