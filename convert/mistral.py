"""Mistral: Llama with a sliding window in every layer."""

from flax_rerank.convert.decoder import classifier_family, decoder_config, sliding_windows, token_logit_family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.models.decoder import DecoderConfig


def mistral_config(hf: HFConfig) -> DecoderConfig:
    """The config of Mistral's body."""
    return decoder_config(hf, sliding_windows=sliding_windows(hf, [True] * hf.take("num_hidden_layers")))


MISTRAL = token_logit_family("mistral", "MistralForCausalLM", mistral_config)
MISTRAL_CLASSIFIER = classifier_family("mistral", "MistralForSequenceClassification", mistral_config)
