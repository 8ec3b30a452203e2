"""Layerwise MiniCPM (bge-reranker-v2-minicpm-layerwise): scaled embeddings and residuals, heads after many layers."""

from collections.abc import Mapping
from typing import Any

from flax_rerank.convert.decoder import attention_bias, body_rules, decoder_config, head_rules, ignored
from flax_rerank.convert.family import Family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.rules import Row, Rule
from flax_rerank.models.decoder import Decoder, DecoderConfig
from flax_rerank.models.readout import Readout


def minicpm_architecture(hf: HFConfig) -> tuple[DecoderConfig, Readout]:
    """Heads of the types raw and complex have a row for every token of the vocabulary. FlagEmbedding's
    reranker takes the last of these rows for the score, and divides the states for them."""
    depth = hf.take("num_hidden_layers")
    hf.only("head_type", "simple", "raw", "complex")
    kind, per_layer = hf.take("head_type", "simple"), hf.take("head_multi", True)
    divisor = hf.take("hidden_size") / hf.take("dim_model_base", 1)
    tied = hf.take("tie_word_embeddings", True) and kind == "raw" and not per_layer
    first = hf.take("start_layer", 8)
    hf.require(first <= depth, f"start_layer is {first}, num_hidden_layers is {depth}: no layer has a score")
    layers = tuple(range(first, depth + 1))
    config = decoder_config(
        hf,
        embedding_scale=float(hf.take("scale_emb", 1)),
        residual_scale=hf.take("scale_depth", 1) / depth**0.5,
        **attention_bias(hf),
    )
    return config, Readout(
        position="last",
        head="tied" if tied else "linear",
        layers=layers,
        heads=tuple(range(len(layers))) if per_layer else (0,) * len(layers),
        tokens=() if kind == "simple" else (config.vocab_size - 1,),
        logit_scale=1.0 if kind == "simple" else 1.0 / divisor,
    )


def minicpm_rules(config: DecoderConfig, readout: Readout, hf: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The body's rules, and those of a head for each layer or of one for all."""
    torch = "lm_head.{i}.weight" if hf.get("head_type") == "raw" else "lm_head.{i}.linear_head.weight"
    rows = config.vocab_size if readout.tokens else 1
    tokens = readout.tokens or (0,)
    if HFConfig(hf).take("head_multi", True):
        return *body_rules(config), *head_rules(readout, torch, Row(tokens[0], rows))
    return *body_rules(config), *head_rules(readout, torch.replace(".{i}", ""), Row(tokens, rows))


MINICPM = Family(
    model_type="minicpm",
    model_classes={"LayerWiseMiniCPMForCausalLM": "decoder-only-layerwise"},
    module=Decoder,
    architecture=minicpm_architecture,
    rules=minicpm_rules,
    ignored=ignored,
)
