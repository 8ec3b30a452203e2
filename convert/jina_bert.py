"""JinaBERT with a classification head (jina-reranker-v1-turbo-en, -tiny-en). Its config.json calls it bert, or names
the body; its positions tell it from BERT, and its tensors whether it has a head."""

from collections.abc import Mapping
from typing import Any

from flax_rerank.convert.encoder import attention_rules, embedding_rules, encoder_architecture
from flax_rerank.convert.family import Family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.rules import Rule, layer_norm, linear, packed
from flax_rerank.models.encoder import Encoder, EncoderConfig
from flax_rerank.models.readout import Readout

NAMES = ("JinaBertModel", "JinaBertForSequenceClassification", "BertForSequenceClassification")


def is_jina_bert(hf: Mapping[str, Any]) -> bool:
    """Whether a config.json that may call itself bert is JinaBERT's."""
    return hf.get("position_embedding_type") == "alibi" or bool({*NAMES[:2]} & {*(hf.get("architectures") or ())})


def jina_bert_architecture(hf: HFConfig) -> tuple[EncoderConfig, Readout]:
    """BERT's with linear biases for positions and a gated feed-forward network. All tokens are of type 0."""
    for name, value in {"position_embedding_type": "alibi", "feed_forward_type": "geglu"}.items():
        if hf.take(name, None) != value:
            hf.fault(f"{name} must be {value!r}: JinaBERT with another one is not supported")
    hf.only("hidden_act", "gelu")
    hf.take("attn_implementation", None)
    hf.take("emb_pooler", None)  # of an embedding model
    return encoder_architecture(hf, positions="alibi", gated_mlp=True, segments=False)


def jina_bert_rules(config: EncoderConfig, readout: Readout, hf: object) -> tuple[Rule, ...]:
    layer = "bert.encoder.layer.{i}"
    return (
        *embedding_rules("bert.embeddings", config),
        *attention_rules(layer),
        *packed(f"{layer}.mlp.gated_layers", "layers.gate", "layers.intermediate", use_bias=False),
        *linear(f"{layer}.mlp.wo", "layers.output"),
        *layer_norm(f"{layer}.mlp.layernorm", "layers.output_norm"),
        *linear("bert.pooler.dense", "head.dense"),
        *linear("classifier", "head.out_proj"),
    )


JINA_BERT = Family(
    model_type="bert",
    model_classes=dict.fromkeys(NAMES, "encoder-only-base"),
    module=Encoder,
    architecture=jina_bert_architecture,
    rules=jina_bert_rules,
    ignored=lambda readout: (r"bert\.embeddings\.position_ids",),
    truncation="longest_first",
    is_of=is_jina_bert,
    in_transformers=False,
)
