"""RoBERTa with a sequence-classification head (cross-encoder/stsb-roberta, quora-roberta)."""

from dataclasses import replace

from flax_rerank.convert.xlm_roberta import XLM_ROBERTA

ROBERTA = replace(
    XLM_ROBERTA,
    model_type="roberta",
    model_classes={"RobertaForSequenceClassification": "encoder-only-base"},
    truncation="longest_first",
)
