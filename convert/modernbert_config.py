"""The positions of ModernBERT: which layers see a window, and the base of the rotary angles in both kinds."""

from typing import Any

from flax_rerank.convert.decoder import sliding_windows
from flax_rerank.convert.hf_config import OBJECT, HFConfig

# transformers 5 has an object for each kind of layer, earlier versions a field.
THETAS = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}
IGNORED = (
    *("decoder_bias", "deterministic_flash_attn", "embedding_dropout", "initializer_cutoff_factor", "mlp_dropout"),
    *("layer_norm_eps", "position_embedding_type", "reference_compile", "repad_logits_with_grad"),
    *("sparse_pred_ignore_index", "sparse_prediction", "tie_word_embeddings"),
)


def positions_of(hf: HFConfig) -> dict[str, Any]:
    """The fields of `DecoderConfig` that say what each layer sees, and how far off it is."""
    for name in IGNORED:
        hf.take(name, None)
    depth, every = hf.take("num_hidden_layers"), hf.take("global_attn_every_n_layers", 3)
    reach = hf.take("local_attention", 128) // 2 + 1
    windows = sliding_windows(hf, [layer % every > 0 for layer in range(depth)], window=reach)
    parameters, thetas = dict(hf.take("rope_parameters", {})), []
    for kind, (field, default) in THETAS.items():
        theta = hf.take(field, default)
        fields = parameters.pop(kind, None) or {}
        if not OBJECT.holds(fields):
            hf.fault(f"rope_parameters: {kind} must be {OBJECT.words}")
            continue
        if fields.get("rope_type", "default") != "default" or fields.keys() - {"rope_type", "rope_theta"}:
            hf.fault(f"rope_parameters: {kind} = {fields} is not supported; only rope_theta, of rope_type default")
        thetas.append(float(hf.check("rope_theta", fields.get("rope_theta"), f"rope_parameters: {kind}: ") or theta))
    if parameters:
        hf.fault(f"rope_parameters has fields that are not understood: {', '.join(map(str, parameters))}")
    everywhere, sliding = thetas if len(thetas) == 2 else (1.0, 1.0)
    return {"rope": (everywhere, None), "sliding_windows": windows, "sliding_rope_theta": sliding}
