"""Write a PyTorch checkpoint of a published model's shape with random bfloat16 weights, for measuring.

Takes the memory of a few megabytes: tensors are made and written piece by piece.
"""

import argparse
import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from flax_rerank.convert.torch_files import INDEX, SINGLE, write_safetensors
from flax_rerank.params import Shape, groups

CONFIGS = Path(__file__).resolve().parent.parent / "flax_rerank" / "published_configs.json"
SHARD_BYTES = 5_000_000_000
PIECE = 1 << 22
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# Bits of bfloat16. Weights: either sign, 2**-7 to 2**-5. Scales of layer normalisation: 1 to 1.12.
WEIGHT = (0x80FF, 0x3C00)
SCALE = (0x000F, 0x3F80)

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

Tensor = tuple[str, Shape]


def encoder_tensors(config: dict[str, Any]) -> Iterator[Tensor]:
    """Names and shapes of XLM-RoBERTa with a classification head."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]

    def linear(name: str, out: int, width: int) -> Iterator[Tensor]:
        yield f"{name}.weight", (out, width)
        yield f"{name}.bias", (out,)

    def norm(name: str) -> Iterator[Tensor]:
        yield f"{name}.weight", (hidden,)
        yield f"{name}.bias", (hidden,)

    embeddings = "roberta.embeddings"
    yield f"{embeddings}.word_embeddings.weight", (config["vocab_size"], hidden)
    yield f"{embeddings}.position_embeddings.weight", (config["max_position_embeddings"], hidden)
    yield f"{embeddings}.token_type_embeddings.weight", (config["type_vocab_size"], hidden)
    yield from norm(f"{embeddings}.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        layer = f"roberta.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            yield from linear(f"{layer}.attention.self.{part}", hidden, hidden)
        yield from linear(f"{layer}.attention.output.dense", hidden, hidden)
        yield from norm(f"{layer}.attention.output.LayerNorm")
        yield from linear(f"{layer}.intermediate.dense", inner, hidden)
        yield from linear(f"{layer}.output.dense", hidden, inner)
        yield from norm(f"{layer}.output.LayerNorm")
    yield from linear("classifier.dense", hidden, hidden)
    yield from linear("classifier.out_proj", 1, hidden)


def decoder_tensors(config: dict[str, Any]) -> Iterator[Tensor]:
    """Names and shapes of Gemma, MiniCPM and Gemma 2, with a head after each layer from `start_layer` on if it has
    that field."""
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    norms = ["input_layernorm", "post_attention_layernorm"]
    if config["model_type"] == "cost_wise_gemma":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for i in range(layers):
        layer = f"model.layers.{i}"
        for part, shape in {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            yield f"{layer}.{part}.weight", shape
        for norm in norms:
            yield f"{layer}.{norm}.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if "start_layer" in config:
        for i in range(len(range(config["start_layer"], layers + 1, config.get("layer_sep", 1)))):
            yield f"lm_head.{i}.linear_head.weight", (1, hidden)


def random_parts(shape: Shape, rng: np.random.Generator, bits: tuple[int, int]) -> Iterator[np.ndarray]:
    """Random numbers in bfloat16, piece by piece."""
    mask, base = map(np.uint16, bits)
    left = math.prod(shape)
    while left:
        part = np.frombuffer(rng.bytes(2 * min(left, PIECE)), np.uint16)
        yield (part & mask) | base
        left -= len(part)


def write_checkpoint(
    name: str, out: Path, *, tokenizer: Path | None, layers: int | None, seed: int, shard_bytes: int
) -> int:
    """Write the folder; the number of bytes of its tensors.

    Raises:
        FileExistsError: `out` is there.
    """
    config = json.loads(CONFIGS.read_text(encoding="utf-8"))[name] | {"torch_dtype": "bfloat16"}
    if layers is not None:
        if "start_layer" in config:
            config["start_layer"] = max(1, config["start_layer"] * layers // config["num_hidden_layers"])
        config["num_hidden_layers"] = layers
    encoder = config["model_type"] == "xlm-roberta"
    shapes = dict((encoder_tensors if encoder else decoder_tensors)(config))
    sizes = {tensor: 2 * math.prod(shape) for tensor, shape in shapes.items()}
    shards = list(groups(sizes, shard_bytes))
    out.mkdir(parents=True)
    rng = np.random.Generator(np.random.SFC64(seed))
    # Gemma adds 1 to the weight of its norms, so theirs are about 0.
    ones = "gemma" not in config["model_type"]

    def parts(shard: list[str]) -> Iterator[np.ndarray]:
        for tensor in shard:
            is_scale = ones and "norm" in tensor.lower() and tensor.endswith("weight")
            yield from random_parts(shapes[tensor], rng, SCALE if is_scale else WEIGHT)

    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else SINGLE
        write_safetensors(out / file, {tensor: (BFLOAT16, shapes[tensor]) for tensor in shard}, parts(shard))
        weight_map |= dict.fromkeys(shard, file)
    total = sum(sizes.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in TOKENIZER_FILES if tokenizer is not None else ():
        shutil.copyfile(tokenizer / name, out / name)
    return total


def main() -> int:
    names = list(json.loads(CONFIGS.read_text(encoding="utf-8")))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=names, help="the model whose shape to take")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument("--tokenizer", type=Path, metavar="D", help="a folder whose tokenizer files to copy")
    parser.add_argument("--layers", type=int, metavar="N", help="layers, instead of all")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES, metavar="N", help="bytes of a file at most")
    args = parser.parse_args()
    total = write_checkpoint(
        args.name,
        args.out,
        tokenizer=args.tokenizer,
        layers=args.layers,
        seed=args.seed,
        shard_bytes=args.shard_bytes,
    )
    print(f"{args.out}: {total:,} bytes of tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
