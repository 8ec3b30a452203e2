"""Write a PyTorch checkpoint of a published model's shape with random bfloat16 weights, for measuring.

Takes numpy alone, and the memory of a few megabytes: tensors are made and written piece by piece.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

CONFIGS = Path(__file__).resolve().parent.parent / "flax_rerank" / "published_configs.json"
SHARD_BYTES = 5_000_000_000
PIECE = 1 << 22
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# Bits of bfloat16. Weights: either sign, 2**-7 to 2**-5. Scales of layer normalisation: 1 to 1.12.
WEIGHT = (0x80FF, 0x3C00)
SCALE = (0x000F, 0x3F80)

Tensor = tuple[str, tuple[int, ...]]


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


def write_tensor(file: BinaryIO, name: str, shape: tuple[int, ...], rng: np.random.Generator, scales: bool) -> None:
    """Append random bfloat16 numbers; `scales`: tensors called norm hold numbers about 1 (else about 0)."""
    mask, base = SCALE if scales and "norm" in name.lower() and name.endswith("weight") else WEIGHT
    left = int(np.prod(shape))
    while left:
        bits = np.frombuffer(rng.bytes(2 * min(left, PIECE)), np.uint16)
        file.write(((bits & np.uint16(mask)) | np.uint16(base)).tobytes())
        left -= len(bits)


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
    tensors = list((encoder_tensors if encoder else decoder_tensors)(config))
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(map(size, shards[-1])) + size(tensor) > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    out.mkdir(parents=True)
    rng = np.random.Generator(np.random.SFC64(seed))
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor in shard:
            start, end = end, end + size(tensor)
            header[tensor[0]] = {"dtype": "BF16", "shape": list(tensor[1]), "data_offsets": [start, end]}
            weight_map[tensor[0]] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(out / file, "wb") as sink:
            sink.write(len(text).to_bytes(8, "little") + text)
            for tensor, shape in shard:
                # Gemma adds 1 to the weight of its norms, so theirs are about 0.
                write_tensor(sink, tensor, shape, rng, scales="gemma" not in config["model_type"])
    total = sum(map(size, tensors))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in TOKENIZER_FILES if tokenizer is not None else ():
        shutil.copyfile(tokenizer / name, out / name)
    return total


def size(tensor: Tensor) -> int:
    """Bytes of a tensor in bfloat16."""
    return 2 * int(np.prod(tensor[1]))


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
