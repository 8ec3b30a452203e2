"""What encoder families share: most config fields, and many tensor names."""

from typing import Any

from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.rules import Rule, layer_norm, linear
from flax_rerank.models.encoder import EncoderConfig
from flax_rerank.models.heads import DenseHead
from flax_rerank.models.readout import TANH, Readout

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def encoder_architecture(hf: HFConfig, head: DenseHead = TANH, **switches: Any) -> tuple[EncoderConfig, Readout]:
    """The architecture of BERT and its descendants: the fields that nearly all have, and the `switches` of this one,
    which may be any field of `EncoderConfig`."""
    hf.take("tie_word_embeddings", None)  # of a head that classifiers do not have
    hf.only("is_decoder", False)
    hf.only("add_cross_attention", False)
    sizes = (*SIZES, "max_position_embeddings", "type_vocab_size")
    fields: dict[str, Any] = {name: switches.get(name) or hf.take(name) for name in sizes if name not in switches}
    if "layer_norm_eps" not in switches:
        fields["layer_norm_eps"] = hf.take("layer_norm_eps", 1e-12)
    if "hidden_act" not in switches:
        fields["hidden_act"] = hf.activation("hidden_act", "gelu")
    if switches.get("positions", "table") == "table":
        hf.only("position_embedding_type", "absolute")
    fields |= switches
    offset = fields.get("position_offset", 0)
    hf.require(
        offset < fields["max_position_embeddings"],
        f"max_position_embeddings must be above {offset}, where positions start (pad_token_id + 1)",
    )
    hf.finish()
    config = EncoderConfig(**fields)
    return config, Readout("first", "dense", layers=(config.num_hidden_layers,), heads=(0,), dense=head)


def embedding_rules(prefix: str, config: EncoderConfig) -> tuple[Rule, ...]:
    """Embeddings, which BERT's descendants name alike under a `prefix` of their own."""
    there = {"word": True, "position": config.positions == "table", "token_type": config.type_vocab_size > 0}
    tables = [name for name in there if there[name]]
    return (
        *(Rule(f"{prefix}.{name}_embeddings.weight", f"embeddings.{name}.embedding") for name in tables),
        *layer_norm(f"{prefix}.LayerNorm", "embeddings.norm"),
    )


def attention_rules(layer: str, suffix: str = "") -> tuple[Rule, ...]:
    """The attention of each layer; `suffix` ends the names of the three projections."""
    return (
        *linear(f"{layer}.attention.self.query{suffix}", "layers.attention.query"),
        *linear(f"{layer}.attention.self.key{suffix}", "layers.attention.key"),
        *linear(f"{layer}.attention.self.value{suffix}", "layers.attention.value"),
        *linear(f"{layer}.attention.output.dense", "layers.attention.output"),
        *layer_norm(f"{layer}.attention.output.LayerNorm", "layers.attention_norm"),
    )


def body_rules(prefix: str, config: EncoderConfig, suffix: str = "") -> tuple[Rule, ...]:
    """Embeddings and layers."""
    layer = f"{prefix}.encoder.layer.{{i}}"
    return (
        *embedding_rules(f"{prefix}.embeddings", config),
        *attention_rules(layer, suffix),
        *linear(f"{layer}.intermediate.dense", "layers.intermediate"),
        *linear(f"{layer}.output.dense", "layers.output"),
        *layer_norm(f"{layer}.output.LayerNorm", "layers.output_norm"),
    )
