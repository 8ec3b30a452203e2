"""XLM-RoBERTa with the tensor names of Jina's own code (jina-reranker-v2-base-multilingual). Its config.json names
XLM-RoBERTa's class, so its tensors tell which it is."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flax_rerank.convert.encoder import embedding_rules
from flax_rerank.convert.hf_config import TENSOR, HFConfig
from flax_rerank.convert.rules import Rule, layer_norm, linear, packed
from flax_rerank.convert.xlm_roberta import HEAD, XLM_ROBERTA, roberta_architecture
from flax_rerank.models.encoder import EncoderConfig
from flax_rerank.models.readout import Readout


def is_jina_xlm_roberta(hf: Mapping[str, Any]) -> bool:
    """Whether a config.json that names XLM-RoBERTa's class belongs to Jina's code. Without tensors, its own fields
    say so."""
    return hf.get(TENSOR, "use_flash_attn" in hf or "model_type" not in hf)


def jina_architecture(hf: HFConfig) -> tuple[EncoderConfig, Readout]:
    """XLM-RoBERTa's."""
    for name in ("use_flash_attn", "emb_pooler"):
        hf.take(name, None)
    return roberta_architecture(hf)


def jina_rules(config: EncoderConfig, readout: Readout, hf: object) -> tuple[Rule, ...]:
    layer, attention = "roberta.encoder.layers.{i}", "layers.attention"
    renamed = (replace(rule, torch=rule.torch.replace("embeddings.LayerNorm", "emb_ln"))
               for rule in embedding_rules("roberta.embeddings", config))  # fmt: skip
    return (
        *renamed,
        *packed(f"{layer}.mixer.Wqkv", *(f"{attention}.{name}" for name in ("query", "key", "value"))),
        *linear(f"{layer}.mixer.out_proj", "layers.attention.output"),
        *layer_norm(f"{layer}.norm1", "layers.attention_norm"),
        *linear(f"{layer}.mlp.fc1", "layers.intermediate"),
        *linear(f"{layer}.mlp.fc2", "layers.output"),
        *layer_norm(f"{layer}.norm2", "layers.output_norm"),
        *HEAD,
    )


JINA_XLM_ROBERTA = replace(
    XLM_ROBERTA,
    architecture=jina_architecture,
    rules=jina_rules,
    truncation="longest_first",
    is_of=is_jina_xlm_roberta,
    in_transformers=False,
)
