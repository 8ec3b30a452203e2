"""XLM-RoBERTa with a sequence-classification head (bge-reranker-base, -large, -v2-m3; bce-reranker)."""

from typing import Any

from flax_rerank.convert.encoder import body_rules, encoder_architecture
from flax_rerank.convert.family import Family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.rules import Rule, linear
from flax_rerank.models.encoder import Encoder, EncoderConfig
from flax_rerank.models.readout import Readout

HEAD = (*linear("classifier.dense", "head.dense"), *linear("classifier.out_proj", "head.out_proj"))


def roberta_architecture(hf: HFConfig, **switches: Any) -> tuple[EncoderConfig, Readout]:
    """BERT's, with positions that start after the padding id."""
    return encoder_architecture(hf, position_offset=hf.take("pad_token_id", 1) + 1, **switches)


def roberta_rules(config: EncoderConfig, readout: Readout, hf: Any) -> tuple[Rule, ...]:
    """BERT's names under another prefix, and a head of its own."""
    return *body_rules("roberta", config), *HEAD


XLM_ROBERTA = Family(
    model_type="xlm-roberta",
    model_classes={"XLMRobertaForSequenceClassification": "encoder-only-base"},
    module=Encoder,
    architecture=roberta_architecture,
    rules=roberta_rules,
    # Checkpoints made from the masked language model have a pooler too, which this head does not use.
    ignored=lambda readout: (r"roberta\.embeddings\.position_ids", r"roberta\.pooler\.dense\.(weight|bias)"),
    prefix="roberta.",
)
