"""T5 as a reranker: monoT5 (castorini/monot5-base-msmarco)."""

from flax_rerank.convert.decoder import head_rules
from flax_rerank.convert.family import Family
from flax_rerank.convert.rules import Row, Rule, linear, rms_norm
from flax_rerank.convert.t5_config import t5_architecture
from flax_rerank.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from flax_rerank.models.readout import Readout

ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "output"}
BIAS = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
# Copies of the embedding, and a table that early versions of transformers saved and none uses.
IGNORED = (r"(en|de)coder\.embed_tokens\.weight", r"decoder\.block\.0\.layer\.1\..*\.relative_attention_bias\.weight")


def t5_rules(config: EncoderDecoderConfig, readout: Readout, hf: object) -> tuple[Rule, ...]:
    inner = {"wi_0": "intermediate", "wi_1": "up"} if config.gated_mlp else {"wi": "intermediate"}
    linears: dict[str, str] = {}
    norms = {"encoder.final_layer_norm": "norm", "decoder.final_layer_norm": "decoder_norm"}
    for half, stack, kinds in (
        ("encoder", "layers", {"SelfAttention": "attention", "DenseReluDense": "mlp"}),
        ("decoder", "decoder_layers", {"SelfAttention": "attention", "EncDecAttention": "cross_attention",
                                       "DenseReluDense": "mlp"}),
    ):  # fmt: skip
        for number, (kind, ours) in enumerate(kinds.items()):
            torch, flax = f"{half}.block.{{i}}.layer.{number}", f"{stack}.{ours}"
            norms[f"{torch}.layer_norm"] = f"{flax}_norm"
            names = inner | {"wo": "output"} if ours == "mlp" else ATTENTION
            linears |= {f"{torch}.{kind}.{name}": f"{flax}.{own}" for name, own in names.items()}
    return (
        Rule("shared.weight", "embed_tokens.embedding"),
        Rule(f"encoder.{BIAS}", "distances.embedding"),
        Rule(f"decoder.{BIAS}", "decoder_distances.embedding"),
        *(rule for torch, flax in linears.items() for rule in linear(torch, flax, use_bias=False)),
        *(rule for torch, flax in norms.items() for rule in rms_norm(torch, flax)),
        *head_rules(readout, "lm_head.weight", Row(readout.tokens, config.vocab_size)),
    )


T5 = Family(
    model_type="t5",
    model_classes={"T5ForConditionalGeneration": "decoder-only-base"},
    module=EncoderDecoder,
    architecture=t5_architecture,
    rules=t5_rules,
    ignored=lambda readout: (*IGNORED, r"lm_head\.weight") if readout.head == "tied" else IGNORED,
    reads_tokens=True,
    prompt_format="monot5",
)
