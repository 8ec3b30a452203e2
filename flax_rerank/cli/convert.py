"""Convert a PyTorch checkpoint to a Flax checkpoint."""

import argparse
import time
from pathlib import Path

import jax
from flax import nnx

from flax_rerank.checkpoint import refuse_existing
from flax_rerank.cli.loading import add_model_arguments, load_reranker
from flax_rerank.sharding import find_devices


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `flax-rerank convert`."""
    parser.add_argument("source", metavar="SOURCE", help="a folder, or a name on the Hugging Face hub")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write")
    add_model_arguments(parser)
    parser.set_defaults(dtype="float32")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Convert, and say what was written.

    Raises:
        FileExistsError: the folder is there and may not be replaced.
        ValueError: the folder to replace holds the source; and as `load_reranker`.
    """
    started = time.perf_counter()
    if Path(args.source).resolve().is_relative_to(args.out.resolve()):
        raise ValueError(f"{args.out} holds the source {args.source}, which writing would remove")
    refuse_existing(args.out, args.overwrite)
    reranker = load_reranker(args.source, args, devices=_host_device())
    reranker.save(args.out, overwrite=args.overwrite)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(reranker.model)))
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(
        f"{args.out}: {type(reranker).__name__}, {parameters:,} parameters in {reranker.dtype.name}, "
        f"{size:,} bytes, {time.perf_counter() - started:.1f} s"
    )
    return 0


def _host_device() -> str | int:
    """One CPU device, so that a model need not fit an accelerator; where JAX was told to have none, the first one."""
    try:
        find_devices("cpu:0")
    except ValueError:
        return 0
    return "cpu:0"
