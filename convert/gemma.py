"""Gemma: norms with weight + 1, scaled embeddings, tanh-approximated GELU."""

from typing import Any

from flax_rerank.convert.decoder import decoder_config, token_logit_family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.models.decoder import DecoderConfig


def gemma_config(hf: HFConfig, **switches: Any) -> DecoderConfig:
    bias = hf.take("attention_bias", False)
    hf.take("hidden_act", None)  # transformers too goes by hidden_activation, whatever hidden_act says
    head_dim = hf.take("head_dim", 256)
    defaults = {
        "head_dim": head_dim,
        "query_scale": head_dim**-0.5,
        "hidden_act": hf.take("hidden_activation", "gelu_pytorch_tanh"),
        "embedding_scale": hf.take("hidden_size") ** 0.5,
        "norm_offset": 1.0,
        "query_key_value_bias": bias,
        "attention_output_bias": bias,
    }
    return decoder_config(hf, **(defaults | switches))


GEMMA = token_logit_family("gemma", "GemmaForCausalLM", gemma_config, tied=True)
