"""Cost-wise Gemma 2 (bge-reranker-v2.5-gemma2-lightweight): heads after many layers, token compression."""

from flax_rerank.convert.decoder import body_rules, head_rules, ignored
from flax_rerank.convert.family import Family
from flax_rerank.convert.gemma2 import LOGIT_SOFTCAP, gemma2_config
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.rules import Row
from flax_rerank.models.decoder import Decoder, DecoderConfig
from flax_rerank.models.readout import Readout


def cost_wise_gemma_architecture(hf: HFConfig) -> tuple[DecoderConfig, Readout]:
    """The body of Gemma 2, and a head after every `layer_sep`-th layer from `start_layer` on."""
    if not hf.take("layer_wise", False):
        hf.fault("layer_wise is false: such a checkpoint has no heads that score a pair")
    hf.take("tie_word_embeddings", None)  # the heads are matrices of their own, whatever it says
    first, every = hf.take("start_layer", 28), hf.take("layer_sep", 28)
    depth = hf.take("num_hidden_layers")
    hf.require(first <= depth, f"start_layer is {first}, num_hidden_layers is {depth}: no layer has a score")
    softcap = hf.given("final_logit_softcapping", LOGIT_SOFTCAP)
    config = gemma2_config(hf)
    layers = tuple(range(first, config.num_hidden_layers + 1, every))
    return config, Readout("last", "linear", layers, heads=tuple(range(len(layers))), softcap=softcap)


COST_WISE_GEMMA = Family(
    model_type="cost_wise_gemma",
    model_classes={"CostWiseGemmaForCausalLM": "decoder-only-lightweight"},
    module=Decoder,
    architecture=cost_wise_gemma_architecture,
    rules=lambda config, readout, hf: (
        *body_rules(config),
        *head_rules(readout, "lm_head.{i}.linear_head.weight", Row(0, rows=1)),
    ),
    ignored=ignored,
)
