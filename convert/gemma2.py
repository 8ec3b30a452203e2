"""Gemma 2: sandwich norms, soft caps, a window in every other layer."""

from flax_rerank.convert.decoder import sliding_windows, token_logit_family
from flax_rerank.convert.gemma import gemma_config
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.models.decoder import DecoderConfig

LOGIT_SOFTCAP = 30.0  # where config.json does not say


def gemma2_config(hf: HFConfig) -> DecoderConfig:
    """The config of Gemma 2's body."""
    hf.take("sliding_window_size", None)  # an old name of sliding_window, which transformers does not read
    return gemma_config(
        hf,
        sandwich_norms=True,
        query_scale=hf.take("query_pre_attn_scalar", 256) ** -0.5,
        attention_softcap=hf.given("attn_logit_softcapping", 50.0),
        sliding_windows=sliding_windows(hf, [layer % 2 == 0 for layer in range(hf.take("num_hidden_layers"))]),
    )


GEMMA2 = token_logit_family("gemma2", "Gemma2ForCausalLM", gemma2_config, tied=True, softcap=LOGIT_SOFTCAP)
