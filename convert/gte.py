"""GTE, whose original code calls itself "new", with a classification head (gte-multilingual-reranker-base)."""

from flax_rerank.convert.decoder import rope
from flax_rerank.convert.encoder import embedding_rules, encoder_architecture
from flax_rerank.convert.family import Family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.rules import Rule, layer_norm, linear, packed
from flax_rerank.models.encoder import Encoder, EncoderConfig
from flax_rerank.models.readout import Readout


def gte_architecture(hf: HFConfig) -> tuple[EncoderConfig, Readout]:
    """BERT's with rotary positions and a gated feed-forward network. transformers writes the NTK scaling of the
    original code as a linear one."""
    hf.only("position_embedding_type", "rope")
    hf.only("pack_qkv", True)
    hf.only("layer_norm_type", "layer_norm")
    for name in ("unpad_inputs", "use_memory_efficient_attention", "logn_attention_clip1"):
        hf.take(name, None)
    hf.only("logn_attention_scale", False)
    theta, scaling = rope(hf, kinds=("linear", "ntk"), theta=10000.0)
    return encoder_architecture(
        hf, positions="rotary", rope_theta=theta, rope_scaling=scaling, gated_mlp=True, segments=False
    )


def gte_rules(config: EncoderConfig, readout: Readout, hf: object) -> tuple[Rule, ...]:
    layer, attention = "new.encoder.layer.{i}", "layers.attention"
    return (
        *embedding_rules("new.embeddings", config),
        *packed(f"{layer}.attention.qkv_proj", *(f"{attention}.{name}" for name in ("query", "key", "value"))),
        *linear(f"{layer}.attention.o_proj", "layers.attention.output"),
        *layer_norm(f"{layer}.attn_ln", "layers.attention_norm"),
        *packed(f"{layer}.mlp.up_gate_proj", "layers.intermediate", "layers.gate", use_bias=False),
        *linear(f"{layer}.mlp.down_proj", "layers.output"),
        *layer_norm(f"{layer}.mlp_ln", "layers.output_norm"),
        *linear("new.pooler.dense", "head.dense"),
        *linear("classifier", "head.out_proj"),
    )


GTE = Family(
    model_type="new",
    model_types=("gte",),
    model_classes=dict.fromkeys(("NewForSequenceClassification", "GteForSequenceClassification"), "encoder-only-base"),
    module=Encoder,
    architecture=gte_architecture,
    rules=gte_rules,
    ignored=lambda readout: (r"new\.embeddings\.position_ids",),
    truncation="longest_first",
    prefix="new.",
    # What transformers 5 writes for a model that it read from the original names, and for one that it made.
    spellings=(("new.gte.", "new."), ("new.classifier.", "classifier."), ("gte.", "new.")),
)
