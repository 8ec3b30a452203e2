"""Llama 2, 3 and their descendants: language models, RankLLaMA's classifier, and NVIDIA's bidirectional one."""

from typing import Any

from flax_rerank.convert.decoder import attention_bias, classifier_family, decoder_config, token_logit_family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.models.decoder import DecoderConfig


def llama_config(hf: HFConfig, **switches: Any) -> DecoderConfig:
    """The config of Llama's body."""
    return decoder_config(hf, **attention_bias(hf), mlp_bias=hf.take("mlp_bias", False), **switches)


def bidirectional_config(hf: HFConfig) -> DecoderConfig:
    """The config of a Llama in which every token sees all others; the mean of their states is scored."""
    hf.only("pooling", "avg")
    return llama_config(hf, causal=False)


LLAMA = token_logit_family("llama", "LlamaForCausalLM", llama_config)
LLAMA_CLASSIFIER = classifier_family("llama", "LlamaForSequenceClassification", llama_config)
LLAMA_BIDIRECTIONAL = classifier_family(
    "llama_bidirec",
    "LlamaBidirectionalForSequenceClassification",
    bidirectional_config,
    position="mean",
    prompt_format="nemotron",
)
