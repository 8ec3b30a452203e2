"""Checkpoint folders of which something is changed, damaged or missing."""

import json
import shutil

import numpy as np
import pytest
from fuzzing import Outcome, attempt, damaged, mutated
from hypothesis import strategies as st
from reference_cases import CASES

from flax_rerank import FlaxAutoReranker
from flax_rerank.auto import find_spec
from flax_rerank.conversion.inspect import inspect_folder
from flax_rerank.dtypes import FLOAT32
from flax_rerank.rerankers.call import resolve
from flax_rerank.text.pairs import tokenize

FAMILIES = (
    *("encoder-bert", "encoder-xlmr", "decoder-llama", "decoder-llama3-rope", "decoder-mistral-window"),
    *("decoder-qwen2", "decoder-qwen3", "decoder-gemma", "decoder-gemma2", "layerwise-dynamic", "lightweight-sep"),
)
PAIRS = [("a query", "a passage of some words"), ("What is a panda?", "The giant panda 大熊猫 is a bear. " * 9)]


def parts_of(name, file):
    """A JSON file of a case, changed as JSON or as bytes."""
    data = (CASES / name / file).read_bytes()
    changed = mutated(json.loads(data)).map(lambda value: json.dumps(value).encode("utf-8"))
    return st.one_of(changed, changed, changed, damaged(data))


def opened(folder, **settings):
    """The spec of a folder, whose settings are right and whose weights fit; these are not read."""
    spec = find_spec(str(folder), **settings)
    resolve(spec, spec.settings)
    spec.weights(spec.module(FLOAT32))
    return spec


def check_folder(folder):
    """Open a folder, and let `inspect` say whether it would load; the spec, or None."""
    found = inspect_folder(folder)
    unexpected = [reason for reason in found.reasons if "something unexpected" in reason]
    assert unexpected == []
    spec, refused = attempt(lambda: opened(folder))
    assert found.loads == (refused is None), refused or found.reasons
    return spec


@pytest.fixture
def copy_of(tmp_path):
    """A copy of a case, without what FlagEmbedding made of it."""

    def copy(name):
        return shutil.copytree(CASES / name, tmp_path / name, ignore=shutil.ignore_patterns("expected.json"))

    return copy


def test_configs(fuzz, copy_of):
    folders = {name: copy_of(name) for name in FAMILIES}
    contents = st.sampled_from(FAMILIES).flatmap(lambda name: st.tuples(st.just(name), parts_of(name, "config.json")))

    def check(content):
        name, data = content
        (folders[name] / "config.json").write_bytes(data)
        return Outcome.REFUSED if check_folder(folders[name]) is None else Outcome.RIGHT

    fuzz(check, contents, examples=15)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("name", ["encoder-bert", "encoder-xlmr", "decoder-llama"])
def test_tokenizers(fuzz, copy_of, name, file):
    folder = copy_of(name)

    def check(data):
        (folder / file).write_bytes(data)
        spec = check_folder(folder)
        if spec is None:
            return Outcome.REFUSED
        call = resolve(spec, spec.settings)
        around = {"query_instruction": spec.settings.query_instruction}
        around |= {"passage_instruction": spec.settings.passage_instruction}
        tokens, refused = attempt(lambda: tokenize(PAIRS, spec.tokenizer, call.template, **around))
        if refused:
            return Outcome.REFUSED
        for pair in range(len(PAIRS)):
            ids = tokens.ids(pair)
            assert len(ids) == tokens.lengths[pair]
            assert ids.max(initial=0) < spec.config.vocab_size
        return Outcome.RIGHT

    fuzz(check, parts_of(name, file), examples=6)


def test_adapters(fuzz, tmp_path):
    folder = shutil.copytree(CASES / "lora-llama" / "adapter", tmp_path / "adapter")
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    changed = mutated(json.loads(config.read_text())).map(lambda value: json.dumps(value).encode("utf-8"))
    whole = weights.read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8

    def check(fields, start):
        config.write_bytes(fields)
        weights.write_bytes(start + whole[header:])
        _, refused = attempt(lambda: opened(CASES / "lora-llama", peft_path=str(folder)))
        return Outcome.REFUSED if refused else Outcome.RIGHT

    fuzz(check, changed | damaged(config.read_bytes()), st.just(whole[:header]) | damaged(whole[:header]), examples=8)


def test_weights(fuzz, copy_of):
    folder = copy_of("encoder-bert")
    whole = (folder / "model.safetensors").read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8

    def check(data, index):
        (folder / "model.safetensors").unlink(missing_ok=True)
        (folder / ("one.safetensors" if index is not None else "model.safetensors")).write_bytes(data)
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)
        if index is not None:
            (folder / "model.safetensors.index.json").write_bytes(index)
        return Outcome.REFUSED if check_folder(folder) is None else Outcome.RIGHT

    sizes = json.loads(whole[8:header])
    weight_map = {name: "one.safetensors" for name in sizes if name != "__metadata__"}
    index = mutated({"metadata": {}, "weight_map": weight_map}).map(lambda value: json.dumps(value).encode("utf-8"))
    start = damaged(whole[:header]).map(lambda data: data + whole[header:])
    fuzz(check, start | damaged(whole) | st.just(whole), st.none() | index, examples=8)


def test_flax_folders(fuzz, reranker, tmp_path):
    bert = reranker("encoder-bert", {"max_length": 64})
    whole, folder = tmp_path / "whole", tmp_path / "model"
    bert.save(whole)
    expected = bert.compute_score(PAIRS)
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())

    def damages(name):
        data = (whole / name).read_bytes()
        changed = damaged(data)
        if name.endswith(".json"):
            changed |= mutated(json.loads(data)).map(lambda value: json.dumps(value).encode("utf-8"))
        return st.tuples(st.just(name), st.none() | changed)

    def check(changes):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        for name, data in changes:
            (folder / name).unlink(missing_ok=True)
            if data is not None:
                (folder / name).write_bytes(data)
        scores, refused = attempt(
            lambda: FlaxAutoReranker.from_finetuned(str(folder), devices="cpu:0").compute_score(PAIRS)
        )
        if refused:
            return Outcome.REFUSED
        # The settings and the manifest itself may be changed by hand.
        if not {"config.json", "manifest.json"} & {name for name, _ in changes}:
            np.testing.assert_array_equal(scores, expected)
        return Outcome.RIGHT

    fuzz(check, st.lists(st.sampled_from(names).flatmap(damages), min_size=1, max_size=2), examples=6)
