"""FlaxLLMReranker: the token of the score, the template, and what is refused."""

import json
import shutil
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from reference_cases import CASES, load_case
from safetensors.numpy import load_file

from flax_rerank import FlaxAutoReranker, FlaxLLMReranker
from flax_rerank.convert.torch_files import SafetensorsFiles
from flax_rerank.dtypes import FLOAT32
from flax_rerank.text.prompts import PromptFormat, find_prompt_format

DECODERS = (
    "decoder-gemma",
    "decoder-gemma2",
    "decoder-llama",
    "decoder-mistral",
    "decoder-qwen2",
    "decoder-qwen3",
)
# Of one length or nearly so: one compiled shape is enough for them.
PAIRS = [load_case("decoder-llama").pairs[i] for i in (0, 2, 5)]
several_pieces = pytest.mark.filterwarnings("ignore:'Yes' is 2 tokens:UserWarning")


def edited(tmp_path, name, file, **fields):
    """A copy of a case with other fields in one of its JSON files."""
    folder = tmp_path / name
    shutil.copytree(CASES / name, folder)
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps(content | fields), encoding="utf-8")
    return str(folder)


# ---- the token of the score


def test_yes_of_several_pieces_warns_and_scores_by_the_first():
    with pytest.warns(UserWarning, match="'Yes' is 2 tokens to this tokenizer; the score is the logit of the first"):
        model = FlaxAutoReranker.from_finetuned(str(CASES / "decoder-llama"))
    pieces = model.spec.tokenizer.encode("Yes")
    assert len(pieces) == 2
    assert model.spec.readout.tokens == (pieces[0],)


def test_yes_of_one_piece_does_not_warn():
    model = FlaxAutoReranker.from_finetuned(str(CASES / "decoder-qwen2"))  # warnings are errors here
    assert list(model.spec.readout.tokens) == model.spec.tokenizer.encode("Yes").tolist()


@several_pieces
def test_of_an_untied_head_only_the_row_of_yes_is_read(monkeypatch):
    parts = {}
    read = SafetensorsFiles.read

    def noting(self, name, index=()):
        part = read(self, name, index)
        parts[name] = part.shape
        return part

    monkeypatch.setattr(SafetensorsFiles, "read", noting)
    model = FlaxAutoReranker.from_finetuned(str(CASES / "decoder-llama"))
    tensors = load_file(CASES / "decoder-llama" / "model.safetensors")
    yes = int(model.spec.tokenizer.encode("Yes")[0])
    assert parts == {name: tensor.shape for name, tensor in tensors.items()} | {"lm_head.weight": (1, 32)}
    assert model.params["head"].shape == (1, 32)
    np.testing.assert_array_equal(model.params["head"][0], tensors["lm_head.weight"][yes])


@several_pieces
def test_a_tied_head_is_the_row_of_the_embeddings(reranker):
    for name in ("decoder-qwen2", "decoder-gemma"):
        model = reranker(name)
        assert model.spec.readout.head == "tied"
        assert "head" not in model.params


# ---- template


def test_a_prompt_changes_scores_and_token_counts(reranker):
    model = reranker("decoder-llama")
    prompt = "Is B relevant to A?"
    default, other = model.score(PAIRS), model.score(PAIRS, prompt=prompt)
    saved = len(model.spec.tokenizer.encode(model.spec.prompt_format.prompt)) - len(
        model.spec.tokenizer.encode(prompt)
    )
    assert saved > 0
    np.testing.assert_array_equal(default.tokens - other.tokens, saved)
    assert np.abs(default.scores - other.scores).min() > 1e-3


def test_the_prompt_of_the_constructor_is_that_of_each_call(reranker):
    prompt = "Is B relevant to A?"
    of_constructor = reranker("decoder-llama", {"prompt": prompt})
    scores = of_constructor.compute_score(PAIRS)
    assert scores == reranker("decoder-llama").compute_score(PAIRS, prompt=prompt)
    default = reranker("decoder-llama").spec.prompt_format.prompt
    assert of_constructor.compute_score(PAIRS, prompt=default) == reranker("decoder-llama").compute_score(PAIRS)


@several_pieces
def test_a_bos_token_that_is_also_the_padding_is_left_out(reranker, tmp_path):
    folder = edited(tmp_path, "decoder-llama", "tokenizer_config.json", pad_token="<s>")
    model = FlaxAutoReranker.from_finetuned(folder)
    assert model.spec.tokenizer.bos_token_id == model.spec.tokenizer.pad_token_id
    assert model.spec.template(model.settings).prefix == ()
    usual = reranker("decoder-llama")
    assert usual.spec.template(usual.settings).prefix == (usual.spec.tokenizer.bos_token_id,)
    np.testing.assert_array_equal(model.score(PAIRS).tokens, usual.score(PAIRS).tokens - 1)


def test_a_tokenizer_without_bos_puts_none_first(reranker):
    model = reranker("decoder-qwen3")
    assert model.spec.tokenizer.bos_token_id is None
    assert model.spec.template(model.settings).prefix == ()


# ---- what comes back


def test_scores_are_floats_and_a_numpy_array_of_the_same_values(reranker):
    model = reranker("decoder-llama")
    scores = model.compute_score(PAIRS)
    assert [type(score) for score in scores] == [float] * len(PAIRS)
    output = model.score(PAIRS)
    assert output.scores.dtype == np.float64
    assert output.scores.tolist() == scores
    assert output.tokens.tolist() == [len(load_case("decoder-llama").runs[0]["input_ids"][i]) for i in (0, 2, 5)]
    assert not output.truncated.any()


def test_no_pairs_give_no_scores(reranker):
    assert reranker("decoder-llama").compute_score([]) == []


# Over the twelve pairs of a case one swap of neighbours makes a rank correlation of 0.993, and bfloat16 makes one in
# about half of the cases, as it does in PyTorch: these models are 32 wide, so that rounding does not average out, and
# have scores 0.002 apart. So what is asserted is the order of scores that are further apart than bfloat16 rounds.
@several_pieces
@pytest.mark.parametrize("name", DECODERS)
def test_bfloat16_keeps_the_order_of_scores_half_their_spread_apart(reranker, name, monkeypatch):
    # One step, compiled once.
    monkeypatch.setattr("flax_rerank.batching.MAX_STEP_TOKENS_ON_CPU", {2**31: 16384})
    monkeypatch.setattr("flax_rerank.batching.MIN_STEP_TOKENS", 16384)
    case = load_case(name)
    run = next(run for run in case.runs if "max_length" in run["call"])
    model = reranker(name, {"dtype": "bfloat16"})
    assert model.params["embed_tokens.embedding"].dtype == ml_dtypes.bfloat16
    exact = np.array(run["scores"])
    rounded = np.array(model.compute_score(case.pairs, max_length=run["call"]["max_length"]))
    apart = np.subtract.outer(exact, exact)
    kept = np.subtract.outer(rounded, rounded) * apart > 0
    assert kept[np.abs(apart) > exact.std() / 2].all()
    assert np.corrcoef(exact, rounded)[0, 1] > 0.99


# ---- bad input


def test_an_instruction_that_leaves_no_token_of_the_passage_names_the_numbers(reranker):
    instruction = "panda " * 80
    model = reranker("decoder-llama", {"passage_instruction_for_rerank": instruction, "max_length": 64})
    taken = len(model.spec.tokenizer.encode(instruction))
    assert taken > 64
    query = len(model.spec.tokenizer.encode("A: " + PAIRS[0][0]))
    with pytest.raises(ValueError, match="pair 0: no token of the passage is left") as error:
        model.compute_score(PAIRS)
    capacity = 64 + len(model.spec.tokenizer.encode(model.spec.prompt_format.prompt)) - 1
    for number in (taken, query, capacity, 64):
        assert f" {number}" in str(error.value)


def test_a_query_that_leaves_no_room_names_the_pair(reranker):
    model = reranker("decoder-llama")
    long = ["panda " * 100, "x " * 100]
    with pytest.raises(ValueError, match=r"pair 1: no token of the passage is left. The query has 64 tokens"):
        model.compute_score([["a", "b"], long], max_length=32, query_max_length=64, prompt="")


@several_pieces
def test_a_max_length_beyond_the_positions_names_both(reranker):
    with pytest.raises(ValueError, match=r"max_length 3000 .* the model has 2048 positions"):
        FlaxAutoReranker.from_finetuned(str(CASES / "decoder-llama"), max_length=3000)
    with pytest.raises(ValueError, match=r"max_length 2049 .* the model has 2048 positions"):
        reranker("decoder-llama").compute_score(PAIRS, max_length=2049)


@several_pieces
def test_arguments_that_the_class_does_not_have_are_named(reranker):
    with pytest.raises(TypeError, match="cutoff_layers"):
        FlaxAutoReranker.from_finetuned(str(CASES / "decoder-llama"), cutoff_layers=[2])
    with pytest.raises(TypeError, match="num_beams"):
        FlaxLLMReranker(str(CASES / "decoder-llama"), num_beams=4)
    with pytest.raises(TypeError, match="compress_ratio"):
        reranker("decoder-llama").compute_score(PAIRS, compress_ratio=2)
    with pytest.raises(TypeError, match="cutoff_layers"):
        reranker("decoder-llama").score(PAIRS, cutoff_layers=[2])


def test_an_answer_without_a_token_is_refused():
    empty = replace(find_prompt_format("flag-llm"), positive="")
    with pytest.raises(ValueError, match="the tokenizer gives no token for ''"):
        FlaxAutoReranker.from_finetuned(str(CASES / "decoder-qwen2"), prompt_format=empty)


def test_a_prompt_format_that_needs_a_bos_token_refuses_a_tokenizer_without(reranker):
    tokenizer = reranker("decoder-qwen3").spec.tokenizer
    with pytest.raises(ValueError, match="the tokenizer has no BOS token, which this prompt format puts first"):
        PromptFormat(special_tokens="bos").template(tokenizer, 64, 48)


def test_an_adapter_for_a_converted_checkpoint_is_refused(reranker, tmp_path):
    reranker("decoder-qwen2").save(tmp_path / "saved")
    with pytest.raises(
        ValueError, match=r"saved is a Flax checkpoint: merge the adapter when its source is converted"
    ):
        FlaxAutoReranker.from_finetuned(
            str(tmp_path / "saved"), peft_path=str(CASES / "lora-llama" / "adapter"), devices="cpu:0"
        )


def test_weights_of_a_spec_without_a_folder_are_refused(reranker):
    spec = reranker("decoder-qwen2").spec
    with pytest.raises(FileNotFoundError, match="only the config is known; give a folder with its weights"):
        replace(spec, folder=None).weights(spec.module(FLOAT32))


@pytest.mark.parametrize("name", ["layerwise-minicpm", "lightweight-gemma2"])
def test_a_checkpoint_of_another_kind_is_refused_by_its_kind(name):
    with pytest.raises(
        ValueError, match=r"is a reranker of the kind decoder-only-(layerwise|lightweight), not decoder-only-base"
    ):
        FlaxLLMReranker(str(CASES / name))
