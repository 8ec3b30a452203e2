"""BERT with a sequence-classification head (ms-marco MiniLM cross-encoders and the like)."""

from flax_rerank.convert.family import Family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.rules import Rule, layer_norm, linear
from flax_rerank.models.encoder import Encoder, EncoderConfig
from flax_rerank.models.readout import Readout


def encoder_architecture(hf: HFConfig, *, position_offset: int) -> tuple[EncoderConfig, Readout]:
    """The architecture of BERT and its descendants; these differ in where positions start."""
    hf.only("position_embedding_type", "absolute")
    hf.only("is_decoder", False)
    hf.only("add_cross_attention", False)
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    fields = {name: hf.take(name) for name in (*sizes, "max_position_embeddings", "type_vocab_size")} | {
        "layer_norm_eps": hf.take("layer_norm_eps", 1e-12),
        "hidden_act": hf.take("hidden_act", "gelu"),
        "position_offset": position_offset,
    }
    hf.require(
        position_offset < fields["max_position_embeddings"],
        f"max_position_embeddings must be above {position_offset}, where positions start (pad_token_id + 1)",
    )
    hf.finish()
    config = EncoderConfig(**fields)
    return config, Readout("first", "dense_tanh", layers=(config.num_hidden_layers,), heads=(0,))


def body_rules(prefix: str) -> tuple[Rule, ...]:
    """Embeddings and layers, which BERT's descendants name alike under a `prefix` of their own."""
    layer = f"{prefix}.encoder.layer.{{i}}"
    return (
        Rule(f"{prefix}.embeddings.word_embeddings.weight", "embeddings.word.embedding"),
        Rule(f"{prefix}.embeddings.position_embeddings.weight", "embeddings.position.embedding"),
        Rule(f"{prefix}.embeddings.token_type_embeddings.weight", "embeddings.token_type.embedding"),
        *layer_norm(f"{prefix}.embeddings.LayerNorm", "embeddings.norm"),
        *linear(f"{layer}.attention.self.query", "layers.attention.query"),
        *linear(f"{layer}.attention.self.key", "layers.attention.key"),
        *linear(f"{layer}.attention.self.value", "layers.attention.value"),
        *linear(f"{layer}.attention.output.dense", "layers.attention.output"),
        *layer_norm(f"{layer}.attention.output.LayerNorm", "layers.attention_norm"),
        *linear(f"{layer}.intermediate.dense", "layers.intermediate"),
        *linear(f"{layer}.output.dense", "layers.output"),
        *layer_norm(f"{layer}.output.LayerNorm", "layers.output_norm"),
    )


BERT = Family(
    model_type="bert",
    model_classes={"BertForSequenceClassification": "encoder-only-base"},
    module=Encoder,
    architecture=lambda hf: encoder_architecture(hf, position_offset=0),
    rules=lambda config, readout, hf: (
        *body_rules("bert"),
        *linear("bert.pooler.dense", "head.dense"),
        *linear("classifier", "head.out_proj"),
    ),
    ignored=lambda readout: (r"bert\.embeddings\.position_ids",),
)
