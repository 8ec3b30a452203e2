"""ModernBERT with a classification head (gte-reranker-modernbert-base, granite-embedding-reranker-english-r2)."""

from typing import Literal

from flax_rerank.convert.decoder import attention_bias, decoder_config
from flax_rerank.convert.family import Family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.modernbert_config import positions_of
from flax_rerank.convert.rules import Rule, layer_norm, linear, packed
from flax_rerank.models.decoder import Decoder, DecoderConfig
from flax_rerank.models.heads import DenseHead
from flax_rerank.models.readout import Readout


def modernbert_architecture(hf: HFConfig) -> tuple[DecoderConfig, Readout]:
    """A body whose norms come first, seen in both directions, of which most layers see a window."""
    epsilon, norm_bias = hf.take("norm_eps", 1e-5), hf.take("norm_bias", False)
    pooling = hf.take("classifier_pooling", "cls")
    hf.only("classifier_pooling", "cls", "mean")
    head = DenseHead(
        hf.activation("classifier_activation", "gelu"), None, hf.take("classifier_bias", False), epsilon, norm_bias
    )
    act = hf.activation("hidden_activation", "gelu")
    config = decoder_config(
        hf, **positions_of(hf), **attention_bias(hf), causal=False, hidden_act=act, rms_norm_eps=epsilon,
        mlp_bias=hf.take("mlp_bias", False), layer_norm=True, norm_bias=norm_bias, embedding_norm=True,
        first_norm=False,
    )  # fmt: skip
    position: Literal["first", "mean"] = "mean" if pooling == "mean" else "first"
    return config, Readout(position, "dense", layers=(config.num_hidden_layers,), heads=(0,), dense=head)


def modernbert_rules(config: DecoderConfig, readout: Readout, hf: object) -> tuple[Rule, ...]:
    layer, norm, bias = "model.layers.{i}", {"use_bias": config.norm_bias}, config.query_key_value_bias
    return (
        Rule("model.embeddings.tok_embeddings.weight", "embed_tokens.embedding"),
        *layer_norm("model.embeddings.norm", "embed_norm", **norm),
        *layer_norm(f"{layer}.attn_norm", "input_layernorms", **norm, first=1),
        *packed(f"{layer}.attn.Wqkv", *(f"layers.self_attn.{name}_proj" for name in "qkv"), use_bias=bias),
        *linear(f"{layer}.attn.Wo", "layers.self_attn.o_proj", use_bias=config.attention_output_bias),
        *layer_norm(f"{layer}.mlp_norm", "layers.post_attention_layernorm", **norm),
        *packed(f"{layer}.mlp.Wi", "layers.mlp.gate_proj", "layers.mlp.up_proj", use_bias=config.mlp_bias),
        *linear(f"{layer}.mlp.Wo", "layers.mlp.down_proj", use_bias=config.mlp_bias),
        *layer_norm("model.final_norm", "norm", **norm),
        *linear("head.dense", "head.dense", use_bias=readout.dense.use_bias),
        *layer_norm("head.norm", "head.norm", **norm),
        *linear("classifier", "head.out_proj"),
    )


MODERNBERT = Family(
    model_type="modernbert",
    model_classes={"ModernBertForSequenceClassification": "encoder-only-base"},
    module=Decoder,
    architecture=modernbert_architecture,
    rules=modernbert_rules,
    ignored=lambda readout: (),
    truncation="longest_first",
    prefix="model.",
)
