"""Gemma: norms with weight + 1, scaled embeddings, tanh-approximated GELU."""

from typing import Any

from flax_rerank.convert.decoder import attention_bias, decoder_config, token_logit_family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.models.decoder import DecoderConfig


def gemma_config(hf: HFConfig, **switches: Any) -> DecoderConfig:
    """The config of Gemma's body, and of its descendants with `switches` of their own."""
    hf.take("hidden_act", None)  # transformers too goes by hidden_activation, whatever hidden_act says
    return decoder_config(
        hf,
        head_dim=256,
        hidden_act=hf.take("hidden_activation", "gelu_pytorch_tanh"),
        embedding_scale=hf.take("hidden_size") ** 0.5,
        norm_offset=1.0,
        **attention_bias(hf),
        **switches,
    )


GEMMA = token_logit_family("gemma", "GemmaForCausalLM", gemma_config, tied=True)
