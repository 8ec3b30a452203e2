"""Qwen3: normalised query and key heads."""

from flax_rerank.convert.decoder import decoder_config, token_logit_family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.qwen2 import qwen_windows
from flax_rerank.models.decoder import DecoderConfig


def qwen3_config(hf: HFConfig) -> DecoderConfig:
    bias = hf.take("attention_bias", False)
    return decoder_config(
        hf,
        head_dim=hf.take("head_dim", 128),
        query_scale=hf.take("head_dim", 128) ** -0.5,
        query_key_value_bias=bias,
        attention_output_bias=bias,
        qk_norm=True,
        sliding_windows=qwen_windows(hf),
    )


QWEN3 = token_logit_family("qwen3", "Qwen3ForCausalLM", qwen3_config)
