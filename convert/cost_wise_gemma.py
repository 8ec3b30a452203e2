"""Cost-wise Gemma 2 (bge-reranker-v2.5-gemma2-lightweight): heads after many layers, token compression."""

from flax_rerank.convert.decoder import IGNORED, layer_head_rules
from flax_rerank.convert.family import Family
from flax_rerank.convert.gemma2 import gemma2_config
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.models.decoder import Decoder, DecoderConfig


def cost_wise_gemma_config(hf: HFConfig) -> DecoderConfig:
    if not hf.take("layer_wise", False):
        hf.fault("layer_wise is false: such a checkpoint has no heads that score a pair")
    first, every = hf.take("start_layer", 28), hf.take("layer_sep", 28)
    return gemma2_config(
        hf,
        tied_head=False,
        head_per_layer=True,
        head_layers=tuple(range(first, hf.take("num_hidden_layers") + 1, every)),
    )


COST_WISE_GEMMA = Family(
    model_type="cost_wise_gemma",
    model_classes={"CostWiseGemmaForCausalLM": "decoder-only-lightweight"},
    module=Decoder,
    config=cost_wise_gemma_config,
    rules=lambda config, hf: layer_head_rules(config, "lm_head.{i}.linear_head.weight"),
    ignored=lambda config: IGNORED,
)
