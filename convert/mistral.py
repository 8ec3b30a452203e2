"""Mistral: Llama with a sliding window in every layer."""

from flax_rerank.convert.decoder import decoder_config, sliding_windows, token_logit_family

MISTRAL = token_logit_family(
    "mistral",
    "MistralForCausalLM",
    lambda hf: decoder_config(hf, sliding_windows=sliding_windows(hf, [True] * hf.take("num_hidden_layers"))),
)
