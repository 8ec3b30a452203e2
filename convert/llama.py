"""Llama 2, 3 and their descendants."""

from flax_rerank.convert.decoder import attention_bias, decoder_config, token_logit_family

LLAMA = token_logit_family(
    "llama",
    "LlamaForCausalLM",
    lambda hf: decoder_config(hf, **attention_bias(hf), mlp_bias=hf.take("mlp_bias", False)),
)
