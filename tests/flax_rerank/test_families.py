"""Every kind of published reranker, by its small checkpoint: converted and in a job over two devices, and with an
adapter."""

import json

import numpy as np
import pytest
from reference_cases import CASES, load_case, open_torch

from flax_rerank import ShardingRules, convert
from flax_rerank.conversion import convert as convert_checkpoint
from flax_rerank.dtypes import FLOAT32
from flax_rerank.jobs import JobOptions, score_files
from flax_rerank.params import shapes_of
from flax_rerank.spec import open_spec
from flax_rerank.training import lora
from flax_rerank.training.adapter import save_adapter

FAMILIES = (
    *("encoder-deberta-v2", "encoder-distilbert", "encoder-electra", "encoder-ettin", "encoder-gte-new-ntk"),
    *("encoder-jina-v1", "encoder-jina-v2", "encoder-modernbert-mean", "encoder-roberta", "logit-ctxl-mistral"),
    *("logit-mxbai-v2", "logit-qwen3-reranker", "logit-zerank", "logit-st-module", "seqcls-llama"),
    *("seqcls-llama-bidirectional", "seqcls-qwen3", "seqcls-st-message", "monot5"),
)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_job_over_two_devices_with_the_converted_checkpoint_gives_the_scores(tmp_path, name):
    case = load_case(name)
    run = case.runs[0]
    convert_checkpoint(str(CASES / name), tmp_path / "flax", **run["init"])
    pairs = case.pairs_of(0)[:2]
    rows = [json.dumps({"query": query, "passage": passage}) + "\n" for query, passage in pairs]
    (tmp_path / "pairs.jsonl").write_text("".join(rows), encoding="utf-8")
    options = JobOptions(input=tmp_path / "pairs.jsonl", output=tmp_path / "scores.jsonl")
    rules = ShardingRules(vocab=None)  # few of the small vocabularies divide
    devices = {"devices": ["cpu:0", "cpu:1"], "mesh": "model=2", "sharding_rules": rules}
    score_files(str(tmp_path / "flax"), options, **devices, **run["call"])
    scores = [json.loads(line)["score"] for line in (tmp_path / "scores.jsonl").read_text("utf-8").splitlines()]
    assert case.error(0, scores, slice(2)) <= case.allowed_error(0)


@pytest.mark.parametrize("name", [*FAMILIES, "listwise-jina-v3"])
def test_an_adapter_in_files_is_the_one_that_was_trained(tmp_path, name):
    spec = open_spec(str(CASES / name))
    module = spec.module(FLOAT32)
    settings = lora.LoRASettings(rank=2, dropout=0.0)
    rng = np.random.default_rng(0)
    shapes = lora.trained_shapes(shapes_of(module), settings)
    trained = {path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}
    save_adapter(tmp_path / "adapter", spec, settings, trained)
    own = open_torch(CASES / name)
    found = convert.open_checkpoint(CASES / name, spec.hf, spec.config, spec.readout, module, tmp_path / "adapter")
    adapted = [path.removesuffix(".lora_a") for path in trained if path.endswith(".lora_a")]
    assert len(adapted) >= 4
    for path in own.shapes():
        expected = own.read(path, np.dtype(np.float32))
        if path in adapted:
            update = np.matmul(trained[f"{path}.lora_a"], trained[f"{path}.lora_b"])
            expected = expected + settings.alpha / settings.rank * update
        np.testing.assert_allclose(found.read(path, np.dtype(np.float32)), expected, rtol=0, atol=1e-4, err_msg=path)
