"""config.json of T5, whose fields have names of their own."""

from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.models.encoder_decoder import EncoderDecoderConfig
from flax_rerank.models.readout import Readout

MLPS = {"relu": ("relu", False), "gated-gelu": ("gelu_new", True), "gated-silu": ("silu", True)}
SIZES = {"vocab_size": "vocab_size", "hidden_size": "d_model", "head_dim": "d_kv", "intermediate_size": "d_ff",
         "num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}  # fmt: skip


def t5_architecture(hf: HFConfig) -> tuple[EncoderDecoderConfig, Readout]:
    """The layers of both halves count as one sequence. A tied head scales its states."""
    hf.only("is_encoder_decoder", True)
    hf.only("feed_forward_proj", *MLPS)
    for name in ("dropout_rate", "dense_act_fn", "is_gated_act"):
        hf.take(name, None)
    tied, act = hf.take("tie_word_embeddings", True), hf.take("feed_forward_proj", "relu")
    sizes = {ours: hf.take(theirs) for ours, theirs in SIZES.items()}
    sizes |= {"num_decoder_layers": hf.take("num_decoder_layers", sizes["num_hidden_layers"])}
    buckets, longest = hf.take("relative_attention_num_buckets", 32), hf.take("relative_attention_max_distance", 128)
    hf.require(buckets // 4 < longest, f"relative_attention_max_distance must be above {buckets // 4}")
    positions, start = hf.take("n_positions", 512), hf.take("decoder_start_token_id", 0)
    hf.require(start < sizes["vocab_size"], f"decoder_start_token_id {start} is not below vocab_size")
    epsilon = hf.take("layer_norm_epsilon", 1e-6)
    hf.finish()
    config = EncoderDecoderConfig(**sizes, max_position_embeddings=positions, buckets=buckets, longest=longest,
                                  rms_norm_eps=epsilon, hidden_act=MLPS[act][0], gated_mlp=MLPS[act][1],
                                  start_token=start)  # fmt: skip
    layers, scale = config.num_hidden_layers + config.num_decoder_layers, config.hidden_size**-0.5
    return config, Readout("first", "tied" if tied else "linear", (layers,), (0,), logit_scale=scale if tied else 1.0)
