"""Llama 2, 3 and their descendants."""

from flax_rerank.convert.decoder import decoder_config, token_logit_family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.models.decoder import DecoderConfig


def llama_config(hf: HFConfig) -> DecoderConfig:
    bias = hf.take("attention_bias", False)
    return decoder_config(
        hf,
        query_key_value_bias=bias,
        attention_output_bias=bias,
        mlp_bias=hf.take("mlp_bias", False),
    )


LLAMA = token_logit_family("llama", "LlamaForCausalLM", llama_config)
