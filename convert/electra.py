"""ELECTRA with a sequence-classification head (cross-encoder/ms-marco-electra-base)."""

from flax_rerank.convert.encoder import body_rules, encoder_architecture
from flax_rerank.convert.family import Family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.rules import Rule, linear
from flax_rerank.convert.xlm_roberta import HEAD
from flax_rerank.models.encoder import Encoder, EncoderConfig
from flax_rerank.models.heads import DenseHead
from flax_rerank.models.readout import Readout


def electra_architecture(hf: HFConfig) -> tuple[EncoderConfig, Readout]:
    """BERT's; smaller embeddings are projected, and the head has a GELU whatever the config says."""
    for name in ("activation", "first_dropout", "last_dropout", "type", "use_proj"):
        hf.take(f"summary_{name}", None)  # of a head that classifiers do not have
    size, hidden = hf.take("embedding_size", 128), hf.take("hidden_size")
    return encoder_architecture(hf, DenseHead("gelu"), embedding_size=None if size == hidden else size)


def electra_rules(config: EncoderConfig, readout: Readout, hf: object) -> tuple[Rule, ...]:
    project = linear("electra.embeddings_project", "embeddings.project") if config.embedding_size else ()
    return *body_rules("electra", config), *project, *HEAD


ELECTRA = Family(
    model_type="electra",
    model_classes={"ElectraForSequenceClassification": "encoder-only-base"},
    module=Encoder,
    architecture=electra_architecture,
    rules=electra_rules,
    ignored=lambda readout: (r"electra\.embeddings\.position_ids",),
    truncation="longest_first",
    prefix="electra.",
)
