"""Qwen2: biased query, key and value; an optional window in the upper layers."""

from flax_rerank.convert.decoder import classifier_family, decoder_config, sliding_windows, token_logit_family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.models.decoder import DecoderConfig


def qwen_windows(hf: HFConfig) -> tuple[int, ...]:
    """The window of each layer: from layer `max_window_layers` on, where it is used at all."""
    first = hf.take("max_window_layers", 28)
    used = hf.take("use_sliding_window", False)
    return sliding_windows(hf, [used and layer >= first for layer in range(hf.take("num_hidden_layers"))])


def qwen2_config(hf: HFConfig) -> DecoderConfig:
    """The config of Qwen2's body."""
    return decoder_config(hf, query_key_value_bias=True, sliding_windows=qwen_windows(hf))


QWEN2 = token_logit_family("qwen2", "Qwen2ForCausalLM", qwen2_config)
QWEN2_CLASSIFIER = classifier_family("qwen2", "Qwen2ForSequenceClassification", qwen2_config)
