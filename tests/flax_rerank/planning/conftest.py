"""A small encoder that is large enough for its figures to be its own."""

import json

import pytest

from flax_rerank.planning.published import find_spec

SMALL = {
    "architectures": ["XLMRobertaForSequenceClassification"],
    "model_type": "xlm-roberta",
    "hidden_act": "gelu",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 514,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_labels": 1,
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "vocab_size": 2001,
}


@pytest.fixture
def folder(tmp_path):
    """A folder with nothing but config.json."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL), encoding="utf-8")
    return tmp_path


@pytest.fixture
def small(folder):
    """`small(**settings)`: its spec."""
    return lambda **settings: find_spec(str(folder), **settings)
