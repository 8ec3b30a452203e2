"""Qwen3: normalised query and key heads."""

from flax_rerank.convert.decoder import attention_bias, decoder_config, token_logit_family
from flax_rerank.convert.qwen2 import qwen_windows

QWEN3 = token_logit_family(
    "qwen3",
    "Qwen3ForCausalLM",
    lambda hf: decoder_config(hf, head_dim=128, qk_norm=True, sliding_windows=qwen_windows(hf), **attention_bias(hf)),
)
