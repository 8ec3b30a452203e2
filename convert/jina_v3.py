"""jina-reranker-v3: Qwen3 with a projector, which scores a list of passages in one prompt."""

from flax_rerank.convert.decoder import body_rules, ignored
from flax_rerank.convert.family import Family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.qwen3 import qwen3_config
from flax_rerank.convert.rules import linear
from flax_rerank.models.decoder import Decoder, DecoderConfig
from flax_rerank.models.readout import Readout


def jina_v3_architecture(hf: HFConfig) -> tuple[DecoderConfig, Readout]:
    """Qwen3's body; what marks passages and query, the tokenizer decides."""
    hf.take("tie_word_embeddings", None)  # there is no head over the vocabulary
    config = qwen3_config(hf)
    return config, Readout("markers", "projector", layers=(config.num_hidden_layers,), heads=(0,))


JINA_V3 = Family(
    model_type="qwen3",
    model_classes={"JinaForRanking": "listwise"},
    module=Decoder,
    architecture=jina_v3_architecture,
    rules=lambda config, readout, hf: (
        *body_rules(config),
        *linear("projector.0", "projector.dense", use_bias=False),
        *linear("projector.2", "projector.out_proj", use_bias=False),
    ),
    ignored=lambda readout: (*ignored(readout), r"lm_head\.weight"),
    prompt_format="jina-v3",
)
