"""XLM-RoBERTa with a sequence-classification head (bge-reranker-base, -large, -v2-m3; bce-reranker)."""

from flax_rerank.convert.bert import body_rules, encoder_config
from flax_rerank.convert.family import Family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.rules import linear
from flax_rerank.models.encoder import Encoder, EncoderConfig


def xlm_roberta_config(hf: HFConfig) -> EncoderConfig:
    """Positions start after the padding id."""
    return encoder_config(hf, position_offset=hf.take("pad_token_id", 1) + 1)


XLM_ROBERTA = Family(
    model_type="xlm-roberta",
    model_classes={"XLMRobertaForSequenceClassification": "encoder-only-base"},
    module=Encoder,
    config=xlm_roberta_config,
    rules=lambda config, hf: (
        *body_rules("roberta"),
        *linear("classifier.dense", "head.dense"),
        *linear("classifier.out_proj", "head.out_proj"),
    ),
    # The pooler comes along in checkpoints made from the masked language model; the head does without it.
    ignored=lambda config: (r"roberta\.embeddings\.position_ids", r"roberta\.pooler\.dense\.(weight|bias)"),
)
