"""Layerwise MiniCPM (bge-reranker-v2-minicpm-layerwise): scaled embeddings and residuals, heads after many layers."""

from collections.abc import Mapping
from typing import Any

from flax_rerank.convert.decoder import IGNORED, IGNORED_TIED, decoder_config, layer_head_rules
from flax_rerank.convert.family import Family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.rules import Rule
from flax_rerank.models.decoder import Decoder, DecoderConfig


def minicpm_config(hf: HFConfig) -> DecoderConfig:
    """Heads of the types raw and complex have a row for every token of the vocabulary. FlagEmbedding's
    reranker takes the last of these rows for the score, and divides the states for them."""
    layers, vocab_size = hf.take("num_hidden_layers"), hf.take("vocab_size")
    bias = hf.take("attention_bias", False)
    hf.only("head_type", "simple", "raw", "complex")
    kind, per_layer = hf.take("head_type", "simple"), hf.take("head_multi", True)
    divisor = hf.take("hidden_size") / hf.take("dim_model_base", 1)
    tied = hf.take("tie_word_embeddings", True)
    return decoder_config(
        hf,
        embedding_scale=float(hf.take("scale_emb", 1)),
        residual_scale=hf.take("scale_depth", 1) / max(layers, 1) ** 0.5,
        query_key_value_bias=bias,
        attention_output_bias=bias,
        head_layers=tuple(range(hf.take("start_layer", 8), layers + 1)),
        head_per_layer=per_layer,
        tied_head=tied and kind == "raw" and not per_layer,
        score_token=None if kind == "simple" else vocab_size - 1,
        logit_scale=1.0 if kind == "simple" else 1.0 / divisor,
    )


def minicpm_rules(config: DecoderConfig, hf: Mapping[str, Any]) -> tuple[Rule, ...]:
    raw = hf.get("head_type") == "raw"
    return layer_head_rules(config, "lm_head.{i}.weight" if raw else "lm_head.{i}.linear_head.weight")


MINICPM = Family(
    model_type="minicpm",
    model_classes={"LayerWiseMiniCPMForCausalLM": "decoder-only-layerwise"},
    module=Decoder,
    config=minicpm_config,
    rules=minicpm_rules,
    ignored=lambda config: IGNORED_TIED if config.tied_head else IGNORED,
)
