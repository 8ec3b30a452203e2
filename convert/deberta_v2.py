"""DeBERTa-v2 and -v3 with a sequence-classification head (mxbai-rerank-xsmall-v1, -base-v1, -large-v1)."""

from flax_rerank.convert.encoder import body_rules, encoder_architecture
from flax_rerank.convert.family import Family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.rules import Rule, layer_norm, linear
from flax_rerank.models.disentangled import Distances
from flax_rerank.models.encoder import Encoder, EncoderConfig
from flax_rerank.models.heads import DenseHead
from flax_rerank.models.readout import Readout


def deberta_architecture(hf: HFConfig) -> tuple[EncoderConfig, Readout]:
    """BERT's, with attention to distances in place of positions."""
    for name, value in {"relative_attention": True, "position_biased_input": False, "share_att_key": True}.items():
        hf.require(hf.take(name, not value) is value, f"{name} must be {str(value).lower()}: else it is not supported")
    hf.only("norm_rel_ebd", "layer_norm")
    hf.only("legacy", True)
    hf.take("pooler_dropout", None)
    hidden, heads = hf.take("hidden_size"), hf.take("num_attention_heads")
    hf.only("pooler_hidden_size", hidden)
    hf.only("attention_head_size", hidden // heads)
    kinds = hf.take("pos_att_type", [])
    kinds = kinds.split("|") if isinstance(kinds, str) else kinds
    hf.require({*kinds} <= {"c2p", "p2c"}, f"pos_att_type has {kinds}; only c2p and p2c are supported")
    buckets, longest = hf.take("position_buckets", -1), hf.take("max_relative_positions", -1)
    longest = longest if longest > 0 else hf.take("max_position_embeddings")
    hf.require(2 <= buckets < 2 * longest - 2, f"position_buckets is {buckets}; it must be from 2 to twice {longest}")
    distances = Distances(buckets, longest, "c2p" in kinds, "p2c" in kinds)
    head = DenseHead(hf.activation("pooler_hidden_act", "gelu"))
    types = hf.take("type_vocab_size", 0)
    return encoder_architecture(
        hf, head, positions="distances", distances=distances, type_vocab_size=types,
        layer_norm_eps=hf.take("layer_norm_eps", 1e-7),
    )  # fmt: skip


def deberta_rules(config: EncoderConfig, readout: Readout, hf: object) -> tuple[Rule, ...]:
    return (
        *body_rules("deberta", config, "_proj"),
        Rule("deberta.encoder.rel_embeddings.weight", "distances.embedding"),
        *layer_norm("deberta.encoder.LayerNorm", "distances_norm"),
        *linear("pooler.dense", "head.dense"),
        *linear("classifier", "head.out_proj"),
    )


DEBERTA_V2 = Family(
    model_type="deberta-v2",
    model_classes={"DebertaV2ForSequenceClassification": "encoder-only-base"},
    module=Encoder,
    architecture=deberta_architecture,
    rules=deberta_rules,
    ignored=lambda readout: (r"deberta\.embeddings\.position_ids",),
    truncation="longest_first",
    prefix="deberta.",
)
