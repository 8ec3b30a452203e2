"""Lists of passages in one prompt: jina-reranker-v3's token ids, blocks and scores."""

import json

import numpy as np
import pytest
from reference_cases import CASES, load_case

from flax_rerank import FlaxAutoReranker, FlaxListwiseReranker, ShardingRules
from flax_rerank.batching import Shape
from flax_rerank.jobs import JobOptions, score_files

pytestmark = pytest.mark.optimized
NAME = "listwise-jina-v3"
RUNS = range(len(load_case(NAME).runs))


def model_of(reranker, run):
    return reranker(NAME, load_case(NAME).runs[run]["init"])


@pytest.mark.parametrize("run", RUNS)
def test_prompts_equal_the_reference(reranker, run):
    case = load_case(NAME)
    expected = case.runs[run]
    prepared = model_of(reranker, run).prepare(case.pairs, **expected["call"])
    assert [prepared.pairs.ids(i).tolist() for i in range(len(prepared.pairs))] == expected["input_ids"]
    assert len(prepared) == len(case.pairs)


def test_scores_equal_the_reference(reranker):
    """Of the run with the most blocks: a list of three passages, one of 40 in two blocks, and one passage."""
    case = load_case(NAME)
    expected = case.runs[1]
    model = model_of(reranker, 1)
    assert isinstance(model, FlaxListwiseReranker)
    for chosen in (slice(0, 3), slice(13, 53), slice(53, 54)):
        prepared = model.prepare(case.pairs[chosen], table=(Shape(1, 1152),), **expected["call"])
        assert case.error(1, model.run(prepared).scores, chosen) <= 1e-4
    (single,) = model.compute_score(case.pairs[1], **expected["call"])
    assert abs(single - expected["single"]) <= 1e-4


def test_a_thousand_passages_are_eight_prompts(reranker):
    model = model_of(reranker, 1)
    pairs = [("what is panda?", f"text {i}") for i in range(1000)]
    assert len(model.prepare(pairs, max_length=100_000).pairs) == 8
    assert len(model.prepare(pairs, max_length=100_000, passages_per_prompt=64).pairs) == 16


def test_an_empty_list_has_no_scores(reranker):
    assert model_of(reranker, 1).rank("what is panda?", []) == []


def test_a_pair_that_cannot_be_encoded_is_left_out_of_its_list(reranker):
    pairs = [("q", "a"), ("q", "\ud800"), ("q", "b")]
    model = model_of(reranker, 1)
    with pytest.raises(ValueError, match="pair 1: its passage cannot be encoded"):
        model.prepare(pairs)
    prepared = model.prepare(pairs, skip_faulty=True, passage_max_length=48)
    assert (list(prepared.faults), len(prepared.pairs)) == ([1], 1)
    assert prepared.tokens.tolist() == [prepared.tokens[0], 0, prepared.tokens[0]]
    scores = model.run(prepared).scores
    assert np.isnan(scores).tolist() == [False, True, False]


def test_a_cut_is_reported(reranker):
    model = model_of(reranker, 1)
    prepared = model.prepare([("q", "a"), ("q", "word " * 100)], passage_max_length=20)
    assert prepared.truncated.tolist() == [False, True]


def test_a_passage_longer_than_the_model_is_named(reranker):
    model = model_of(reranker, 1)
    with pytest.raises(ValueError, match=r"pair 1: the prompt with it .* than the model has positions, 131072"):
        model.prepare([("q", "a"), ("r", "word " * 70_000)], passage_max_length=140_000)


def test_markers_in_texts_are_removed_until_there_are_none(reranker):
    model = model_of(reranker, 1)
    prepared = model.prepare([("q<|rerank_token|>", "a<|embed_<|embed_token|>token|>")])
    ids = prepared.pairs.ids(0).tolist()
    assert [ids.count(marker) for marker in model.spec.readout.markers] == [1, 1]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"passages_per_prompt": 126}, "passages_per_prompt is 126; it must be at least 1 and at most 125"),
        ({"passage_max_length": 0}, "passage_max_length is 0"),
        ({"instruction": "Be brief"}, "takes no instruction"),
    ],
)
def test_settings_out_of_range_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        FlaxAutoReranker.from_finetuned(str(CASES / NAME), devices="cpu:0", **settings)


def test_a_checkpoint_gives_the_same_scores(reranker, tmp_path):
    model = model_of(reranker, 1)
    model.save(tmp_path / "saved")
    pairs = load_case(NAME).pairs[:3]
    loaded = FlaxAutoReranker.from_finetuned(tmp_path / "saved", devices="cpu:0")
    assert loaded.compute_score(pairs) == model.compute_score(pairs)


def test_a_job_over_two_devices_scores_lists(reranker, tmp_path):
    case = load_case(NAME)
    pairs = case.pairs[:3]
    rows = [json.dumps({"query": query, "passage": passage}) + "\n" for query, passage in pairs]
    (tmp_path / "pairs.jsonl").write_text("".join(rows), encoding="utf-8")
    options = JobOptions(input=tmp_path / "pairs.jsonl", output=tmp_path / "scores.jsonl")
    devices = {"devices": ["cpu:0", "cpu:1"], "mesh": "model=2", "sharding_rules": ShardingRules(vocab=None)}
    score_files(str(CASES / NAME), options, **devices, **case.runs[1]["init"], **case.runs[1]["call"])
    scores = [json.loads(line)["score"] for line in (tmp_path / "scores.jsonl").read_text("utf-8").splitlines()]
    assert case.error(1, scores, slice(3)) <= 1e-4
