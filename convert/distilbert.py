"""DistilBERT with a sequence-classification head."""

from flax_rerank.convert.encoder import SIZES, embedding_rules, encoder_architecture
from flax_rerank.convert.family import Family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.rules import Rule, layer_norm, linear
from flax_rerank.models.encoder import Encoder, EncoderConfig
from flax_rerank.models.heads import DenseHead
from flax_rerank.models.readout import Readout


def distilbert_architecture(hf: HFConfig) -> tuple[EncoderConfig, Readout]:
    """BERT's without token types, under names of its own, with an epsilon that the config does not have."""
    for name in ("dropout", "qa_dropout", "seq_classif_dropout", "tie_weights_", "sinusoidal_pos_embds"):
        hf.take(name, None)  # sinusoidal positions are a table too, made beforehand
    names = dict(zip(SIZES, ("vocab_size", "dim", "n_layers", "n_heads", "hidden_dim"), strict=True))
    sizes = {field: hf.take(name) for field, name in names.items()}
    act = hf.activation("activation", "gelu")
    return encoder_architecture(
        hf, DenseHead("relu"), **sizes, type_vocab_size=0, layer_norm_eps=1e-12, hidden_act=act
    )


def distilbert_rules(config: EncoderConfig, readout: Readout, hf: object) -> tuple[Rule, ...]:
    layer = "distilbert.transformer.layer.{i}"
    return (
        *embedding_rules("distilbert.embeddings", config),
        *linear(f"{layer}.attention.q_lin", "layers.attention.query"),
        *linear(f"{layer}.attention.k_lin", "layers.attention.key"),
        *linear(f"{layer}.attention.v_lin", "layers.attention.value"),
        *linear(f"{layer}.attention.out_lin", "layers.attention.output"),
        *layer_norm(f"{layer}.sa_layer_norm", "layers.attention_norm"),
        *linear(f"{layer}.ffn.lin1", "layers.intermediate"),
        *linear(f"{layer}.ffn.lin2", "layers.output"),
        *layer_norm(f"{layer}.output_layer_norm", "layers.output_norm"),
        *linear("pre_classifier", "head.dense"),
        *linear("classifier", "head.out_proj"),
    )


DISTILBERT = Family(
    model_type="distilbert",
    model_classes={"DistilBertForSequenceClassification": "encoder-only-base"},
    module=Encoder,
    architecture=distilbert_architecture,
    rules=distilbert_rules,
    ignored=lambda readout: (r"distilbert\.embeddings\.position_ids",),
    truncation="longest_first",
    prefix="distilbert.",
)
