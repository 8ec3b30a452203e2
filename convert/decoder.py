"""What decoder families share: most config fields and nearly all tensor names."""

from collections.abc import Callable
from typing import Any, Literal

from flax_rerank.convert.family import Family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.rules import IDENTITY, Row, Rule, Transform, linear, rms_norm
from flax_rerank.models.decoder import Decoder, DecoderConfig
from flax_rerank.models.readout import Readout
from flax_rerank.models.rotary import RopeScaling


def decoder_config(hf: HFConfig, *, head_dim: int | None = None, **switches: Any) -> DecoderConfig:
    """The config of a decoder's body: the fields that all families have, and the `switches` of this one.

    `head_dim` counts where config.json has none; by default the heads share the hidden size. A switch named `rope` is
    what `rope` gives for others.
    """
    heads, hidden_size = hf.take("num_attention_heads"), hf.take("hidden_size")
    head_dim = hf.take("head_dim", hidden_size // heads if head_dim is None else head_dim)
    hf.require(
        head_dim % 2 == 0 and head_dim >= 4,
        f"head_dim (by default hidden_size / num_attention_heads) is {head_dim}; it must be even and at least 4",
    )
    hf.take("pretraining_tp", 1)  # splits products without changing them
    if "hidden_act" not in switches:
        switches["hidden_act"] = hf.take("hidden_act")
    theta, scaling = switches.pop("rope", None) or rope(hf)
    sizes = ("vocab_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings")
    fields = {name: hf.take(name) for name in sizes} | {
        "hidden_size": hidden_size,
        "num_attention_heads": heads,
        "num_key_value_heads": hf.take("num_key_value_heads", heads),
        "head_dim": head_dim,
        "rms_norm_eps": hf.take("rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "query_scale": max(head_dim, 1) ** -0.5,
    }
    hf.finish()
    return DecoderConfig(**(fields | switches))


def attention_bias(hf: HFConfig) -> dict[str, bool]:
    """The switches for `attention_bias`, which is that of all four projections."""
    bias = hf.take("attention_bias", False)
    return {"query_key_value_bias": bias, "attention_output_bias": bias}


def sliding_windows(
    hf: HFConfig, slides: list[bool], default: int = 4096, window: int | None = None
) -> tuple[int, ...]:
    """The window of each layer; `slides` says which have one where `layer_types` does not. By default it is the field
    `sliding_window`."""
    if window is None:
        window = hf.given("sliding_window", default) or 0
    types = hf.take("layer_types", [])
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unknown:
        hf.fault(f"layer_types has {', '.join(unknown)}, which is not supported")
    hf.require(
        len(types) in (0, len(slides)),
        f"layer_types has length {len(types)}, num_hidden_layers is {len(slides)}",
    )
    if types:
        slides = [kind == "sliding_attention" for kind in types]
    return tuple(window if slide else 0 for slide in slides) if window and any(slides) else ()


def rope(
    hf: HFConfig, kinds: tuple[str, ...] = ("linear", "dynamic", "llama3"), theta: float = 10000.0
) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the rotary embedding, from the fields of transformers 4 or 5: one of `kinds`, or none."""
    theta = hf.take("rope_theta", theta)
    fields = hf.take("rope_scaling", {}) | hf.take("rope_parameters", {})

    def pop(name: str, default: Any) -> Any:
        value = hf.check(name, fields.pop(name, None), "rope scaling: ")
        return default if value is None else value

    theta = pop("rope_theta", theta)
    said = [pop(name, None) for name in ("rope_type", "type")]
    kind: Any = next(filter(None, said), "default")
    factor = pop("factor", None)
    scaling = None
    if kind not in ("default", *kinds):
        hf.fault(f"rope scaling {kind!r} is not supported; only {', '.join(kinds[:-1])} and {kinds[-1]}")
        return theta, None
    if kind != "default" and factor is None:
        hf.fault(f"rope scaling {kind!r} has no factor")
        return theta, None
    if kind != "default":
        positions = hf.take("max_position_embeddings")
        original = pop("original_max_position_embeddings", positions)
        scaling = RopeScaling(
            kind=kind,
            factor=float(factor),
            # Of transformers' dynamic scaling only max_position_embeddings counts.
            original_max_position_embeddings=positions if kind == "dynamic" else original,
            low_freq_factor=pop("low_freq_factor", 1.0),
            high_freq_factor=pop("high_freq_factor", 1.0),
        )
        hf.require(
            kind != "llama3" or scaling.low_freq_factor < scaling.high_freq_factor,
            f"rope scaling 'llama3': high_freq_factor must be above low_freq_factor, {scaling.low_freq_factor}",
        )
    if fields:
        hf.fault(f"rope scaling has fields that are not understood: {', '.join(fields)}")
    return theta, scaling


def body_rules(config: DecoderConfig) -> tuple[Rule, ...]:
    """Embeddings, layers and final norm, which all families name alike."""
    biases = {f"self_attn.{name}_proj": config.query_key_value_bias for name in "qkv"}
    biases["self_attn.o_proj"] = config.attention_output_bias
    biases |= {f"mlp.{name}_proj": config.mlp_bias for name in ("gate", "up", "down")}
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["self_attn.q_norm", "self_attn.k_norm"] if config.qk_norm else []
    norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if config.sandwich_norms else []
    torch, flax = "model.layers.{i}", "layers"
    rules = [Rule("model.embed_tokens.weight", "embed_tokens.embedding"), *rms_norm("model.norm", "norm")]
    for name, use_bias in biases.items():
        rules += linear(f"{torch}.{name}", f"{flax}.{name}", use_bias=use_bias)
    for name in norms:
        rules += rms_norm(f"{torch}.{name}", f"{flax}.{name}")
    return tuple(rules)


def head_rules(readout: Readout, torch: str, transform: Transform = IDENTITY) -> tuple[Rule, ...]:
    """The rule of a linear head; a tied one has no tensor of its own."""
    return () if readout.head == "tied" else (Rule(torch, "head", transform),)


def ignored(readout: Readout) -> tuple[str, ...]:
    """Rotary frequencies that old versions of transformers saved, and the head of a tied model, which is its
    embedding."""
    frequencies = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
    return (frequencies, r"lm_head\.weight") if readout.head == "tied" else (frequencies,)


def classifier_family(
    model_type: str,
    architecture: str,
    config: Callable[[HFConfig], DecoderConfig],
    *,
    position: Literal["last", "mean"] = "last",
    prompt_format: str = "texts",
) -> Family:
    """A family of decoders with a classification head of one label.

    `config` reads config.json into the config of the body. The logit is divided by the `temperature` that config.json
    gives where the mean of all tokens is scored.
    """

    def architecture_of(hf: HFConfig) -> tuple[DecoderConfig, Readout]:
        hf.take("tie_word_embeddings", None)  # there is no head to tie
        pad_token = hf.take("pad_token_id", None) if position == "last" else None
        scale = 1.0 / hf.take("temperature", 1.0) if position == "mean" else 1.0
        body = config(hf)
        layers = (body.num_hidden_layers,)
        return body, Readout(position, "linear", layers, heads=(0,), logit_scale=scale, pad_token=pad_token)

    return Family(
        model_type=model_type,
        model_classes={architecture: "decoder-only-base"},
        module=Decoder,
        architecture=architecture_of,
        rules=lambda config, readout, hf: (*body_rules(config), Rule("score.weight", "head")),
        # A base that an adapter makes a classifier of has a head over the vocabulary too.
        ignored=lambda readout: (*ignored(readout), r"lm_head\.weight"),
        prompt_format=prompt_format,
    )


def token_logit_family(
    model_type: str,
    architecture: str,
    config: Callable[[HFConfig], DecoderConfig],
    *,
    tied: bool = False,
    softcap: float | None = None,
) -> Family:
    """A family of causal language models that score by the logits of one or two tokens.

    `config` reads config.json into the config of the body. Where config.json does not say, `tied` says whether the
    head is the embedding, and `softcap` bounds the logits; it is None for families without that field.
    """

    def architecture_of(hf: HFConfig) -> tuple[DecoderConfig, Readout]:
        head: Literal["linear", "tied"] = "tied" if hf.take("tie_word_embeddings", tied) else "linear"
        bound = None if softcap is None else hf.given("final_logit_softcapping", softcap)
        body = config(hf)
        return body, Readout("last", head, layers=(body.num_hidden_layers,), heads=(0,), softcap=bound)

    return Family(
        model_type=model_type,
        model_classes={architecture: "decoder-only-base"},
        module=Decoder,
        architecture=architecture_of,
        rules=lambda config, readout, hf: (
            *body_rules(config),
            *head_rules(readout, "lm_head.weight", Row(readout.tokens, config.vocab_size)),
        ),
        ignored=ignored,
        reads_tokens=True,
    )
