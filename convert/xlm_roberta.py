"""XLM-RoBERTa with a sequence-classification head (bge-reranker-base, -large, -v2-m3; bce-reranker)."""

from flax_rerank.convert.bert import body_rules, encoder_architecture
from flax_rerank.convert.family import Family
from flax_rerank.convert.rules import linear
from flax_rerank.models.encoder import Encoder

XLM_ROBERTA = Family(
    model_type="xlm-roberta",
    model_classes={"XLMRobertaForSequenceClassification": "encoder-only-base"},
    module=Encoder,
    # Positions start after the padding id.
    architecture=lambda hf: encoder_architecture(hf, position_offset=hf.take("pad_token_id", 1) + 1),
    rules=lambda config, readout, hf: (
        *body_rules("roberta"),
        *linear("classifier.dense", "head.dense"),
        *linear("classifier.out_proj", "head.out_proj"),
    ),
    # Checkpoints made from the masked language model have a pooler too, which this head does not use.
    ignored=lambda readout: (r"roberta\.embeddings\.position_ids", r"roberta\.pooler\.dense\.(weight|bias)"),
)
