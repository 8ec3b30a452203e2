"""Qwen3: normalised query and key heads."""

from flax_rerank.convert.decoder import attention_bias, classifier_family, decoder_config, token_logit_family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.qwen2 import qwen_windows
from flax_rerank.models.decoder import DecoderConfig


def qwen3_config(hf: HFConfig) -> DecoderConfig:
    """The config of Qwen3's body."""
    return decoder_config(hf, head_dim=128, qk_norm=True, sliding_windows=qwen_windows(hf), **attention_bias(hf))


QWEN3 = token_logit_family("qwen3", "Qwen3ForCausalLM", qwen3_config)
QWEN3_CLASSIFIER = classifier_family("qwen3", "Qwen3ForSequenceClassification", qwen3_config)
