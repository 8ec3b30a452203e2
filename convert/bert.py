"""BERT with a sequence-classification head (ms-marco MiniLM cross-encoders and the like)."""

from flax_rerank.convert.encoder import body_rules, encoder_architecture
from flax_rerank.convert.family import Family
from flax_rerank.convert.rules import linear
from flax_rerank.models.encoder import Encoder

BERT = Family(
    model_type="bert",
    model_classes={"BertForSequenceClassification": "encoder-only-base"},
    module=Encoder,
    architecture=encoder_architecture,
    rules=lambda config, readout, hf: (
        *body_rules("bert", config),
        *linear("bert.pooler.dense", "head.dense"),
        *linear("classifier", "head.out_proj"),
    ),
    ignored=lambda readout: (r"bert\.embeddings\.position_ids",),
    prefix="bert.",
)
