"""What decoder families share: most config fields and nearly all tensor names."""

from collections.abc import Callable
from typing import Any

from flax_rerank.convert.family import Family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.rules import Row, Rule, linear, rms_norm
from flax_rerank.models.decoder import Decoder, DecoderConfig
from flax_rerank.models.rotary import RopeScaling

# Rotary frequencies that old versions of transformers saved, and the head of a tied model, which is its embedding.
IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
IGNORED_TIED = (*IGNORED, r"lm_head\.weight")


def decoder_config(hf: HFConfig, **switches: Any) -> DecoderConfig:
    """The config of a decoder: the fields that all families have, and the `switches` of this one."""
    heads = hf.take("num_attention_heads")
    hidden_size = hf.take("hidden_size")
    head_dim = hf.take("head_dim", hidden_size // max(heads, 1))
    layers = hf.take("num_hidden_layers")
    hf.take("pretraining_tp", 1)  # splits products without changing them
    theta, scaling = rope(hf)
    if "hidden_act" not in switches:
        switches["hidden_act"] = hf.take("hidden_act")
    fields = {
        "vocab_size": hf.take("vocab_size"),
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": hf.take("num_key_value_heads", heads),
        "head_dim": head_dim,
        "intermediate_size": hf.take("intermediate_size"),
        "max_position_embeddings": hf.take("max_position_embeddings"),
        "rms_norm_eps": hf.take("rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "query_scale": max(head_dim, 1) ** -0.5,
        "head_layers": (layers,),
    }
    hf.finish()
    return DecoderConfig(**(fields | switches))


def rope(hf: HFConfig) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the rotary embedding, from the fields of transformers 4 or 5."""
    theta = hf.take("rope_theta", 10000.0)
    fields = dict(hf.take("rope_scaling", {})) | dict(hf.take("rope_parameters", {}))
    theta = fields.pop("rope_theta", theta)
    kinds = [fields.pop(name, None) for name in ("rope_type", "type")]
    kind = next(filter(None, kinds), "default")
    if kind == "default":
        scaling = None
        fields.pop("factor", None)
    elif kind not in ("linear", "dynamic", "llama3"):
        hf.fault(f"rope scaling {kind!r} is not supported; only linear, dynamic and llama3")
        return theta, None
    elif "factor" not in fields:
        hf.fault(f"rope scaling {kind!r} has no factor")
        return theta, None
    else:
        positions = hf.take("max_position_embeddings")
        original = fields.pop("original_max_position_embeddings", positions)
        scaling = RopeScaling(
            kind=kind,
            factor=float(fields.pop("factor")),
            # Of transformers' dynamic scaling only max_position_embeddings counts.
            original_max_position_embeddings=positions if kind == "dynamic" else original,
            low_freq_factor=fields.pop("low_freq_factor", 1.0),
            high_freq_factor=fields.pop("high_freq_factor", 1.0),
        )
    if fields:
        hf.fault(f"rope scaling has fields that are not understood: {', '.join(fields)}")
    return theta, scaling


def sliding_windows(hf: HFConfig, slides: list[bool], default: int = 4096) -> tuple[int, ...]:
    """The window of each layer; `slides` says which have one where `layer_types` does not."""
    window = hf.given("sliding_window", default) or 0
    types = hf.take("layer_types", [])
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unknown:
        hf.fault(f"layer_types has {', '.join(unknown)}, which is not supported")
    if types:
        slides = [kind == "sliding_attention" for kind in types]
    return tuple(window if slide else 0 for slide in slides) if window and any(slides) else ()


def body_rules(config: DecoderConfig) -> tuple[Rule, ...]:
    """Embeddings, layers and final norm, which all families name alike."""
    torch, flax = "model.layers.{i}", "layers"
    bias = config.query_key_value_bias
    attention = (
        *linear(f"{torch}.self_attn.q_proj", f"{flax}.self_attn.q_proj", use_bias=bias),
        *linear(f"{torch}.self_attn.k_proj", f"{flax}.self_attn.k_proj", use_bias=bias),
        *linear(f"{torch}.self_attn.v_proj", f"{flax}.self_attn.v_proj", use_bias=bias),
        *linear(f"{torch}.self_attn.o_proj", f"{flax}.self_attn.o_proj", use_bias=config.attention_output_bias),
    )
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["self_attn.q_norm", "self_attn.k_norm"] if config.qk_norm else []
    norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if config.sandwich_norms else []
    return (
        Rule("model.embed_tokens.weight", "embed_tokens.embedding"),
        *attention,
        *(rule for name in norms for rule in rms_norm(f"{torch}.{name}", f"{flax}.{name}")),
        *(
            rule
            for name in ("gate_proj", "up_proj", "down_proj")
            for rule in linear(f"{torch}.mlp.{name}", f"{flax}.mlp.{name}", use_bias=config.mlp_bias)
        ),
        *rms_norm("model.norm", "norm"),
    )


def token_logit_family(model_type: str, architecture: str, config: Callable[[HFConfig], DecoderConfig]) -> Family:
    """A family of causal language models that score by the logit of one token."""
    return Family(
        model_type=model_type,
        model_classes={architecture: "decoder-only-base"},
        module=Decoder,
        config=config,
        rules=lambda config, hf: token_logit_rules(config),
        ignored=lambda config: IGNORED_TIED if config.tied_head else IGNORED,
    )


def token_logit_rules(config: DecoderConfig) -> tuple[Rule, ...]:
    """A causal language model, of whose head only the row of `score_token` is read."""
    if config.tied_head:
        return body_rules(config)
    return *body_rules(config), Rule("lm_head.weight", "head", Row(config.score_token, config.vocab_size), slot=0)


def layer_head_rules(config: DecoderConfig, torch: str) -> tuple[Rule, ...]:
    """Heads after several layers: `torch` names their weight, with `{i}` for the head's number."""
    if config.tied_head:
        return body_rules(config)
    row = Row(0, 1) if config.score_token is None else Row(config.score_token, config.vocab_size)
    if config.head_per_layer:
        return *body_rules(config), Rule(torch, "head", row)
    return *body_rules(config), Rule(torch.replace(".{i}", ""), "head", row, slot=0)
