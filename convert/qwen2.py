"""Qwen2: biased query, key and value; an optional window in the upper layers."""

from flax_rerank.convert.decoder import decoder_config, sliding_windows, token_logit_family
from flax_rerank.convert.hf_config import HFConfig


def qwen_windows(hf: HFConfig) -> tuple[int, ...]:
    """The window of each layer: from layer `max_window_layers` on, where it is used at all."""
    first = hf.take("max_window_layers", 28)
    used = hf.take("use_sliding_window", False)
    return sliding_windows(hf, [used and layer >= first for layer in range(hf.take("num_hidden_layers"))])


QWEN2 = token_logit_family(
    "qwen2",
    "Qwen2ForCausalLM",
    lambda hf: decoder_config(hf, query_key_value_bias=True, sliding_windows=qwen_windows(hf)),
)
