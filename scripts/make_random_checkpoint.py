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

import ml_dtypes
import numpy as np
from flax import nnx

from flax_rerank.convert import family_of
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.rules import assignments
from flax_rerank.convert.torch_files import MAX_SHARD_SIZE, write_json, write_torch_files
from flax_rerank.dtypes import FLOAT32
from flax_rerank.params import Shape, shapes_of

CONFIGS = Path(__file__).resolve().parent.parent / "flax_rerank" / "published_configs.json"
PIECE = 1 << 22
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# Bits of bfloat16. Weights: either sign, 2**-7 to 2**-5. Scales of norms: 1 to 1.12.
WEIGHT = (0x80FF, 0x3C00)
SCALE = (0x000F, 0x3F80)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


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
        FileExistsError: `out` exists.
    """
    hf = json.loads(CONFIGS.read_text(encoding="utf-8"))[name] | {"torch_dtype": "bfloat16"}
    if layers is not None:
        if "start_layer" in hf:
            hf["start_layer"] = max(1, hf["start_layer"] * layers // hf["num_hidden_layers"])
        hf["num_hidden_layers"] = layers
    family = family_of(hf)
    config, readout = family.architecture(HFConfig(hf))
    module = nnx.eval_shape(lambda: family.module(config, readout, FLOAT32))
    items = {item.tensor: item for item in assignments(family.rules(config, readout, hf), shapes_of(module))}
    shapes = {tensor: item.shape for tensor, item in items.items()}
    rng = np.random.Generator(np.random.SFC64(seed))
    # Gemma adds 1 to the weight of its norms, so theirs are about 0.
    around_one = not getattr(config, "norm_offset", 0)

    def parts(tensor: str) -> Iterator[np.ndarray]:
        is_scale = around_one and items[tensor].path.endswith(".scale")
        return random_parts(shapes[tensor], rng, SCALE if is_scale else WEIGHT)

    out.mkdir(parents=True)
    write_torch_files(out, shapes, BFLOAT16, parts, shard_bytes)
    write_json(out / "config.json", hf)
    for file in TOKENIZER_FILES if tokenizer is not None else ():
        shutil.copyfile(tokenizer / file, out / file)
    return 2 * sum(map(math.prod, shapes.values()))


def main() -> int:
    names = list(json.loads(CONFIGS.read_text(encoding="utf-8")))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=names, help="the model whose shape to take")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument("--tokenizer", type=Path, metavar="D", help="a folder whose tokenizer files to copy")
    parser.add_argument("--layers", type=int, metavar="N", help="layers, instead of all")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--shard-bytes", type=int, default=MAX_SHARD_SIZE, metavar="N", help="bytes of a file at most")
    args = vars(parser.parse_args())
    print(f"{args['out']}: {write_checkpoint(**args):,} bytes of tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
