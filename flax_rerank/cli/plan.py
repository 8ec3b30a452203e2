"""Find the mesh of a topology on which a model scores a job fastest, bound its speed, and price it. Needs no TPU."""

import argparse
import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax

from flax_rerank.cli.loading import add_model_class, add_replicate, add_settings, given_settings, naming_options
from flax_rerank.jobs.rows import Row
from flax_rerank.jobs.sources import open_source
from flax_rerank.planning.plan import make_plan, nearest_that_fits
from flax_rerank.planning.plot import plot_speeds
from flax_rerank.planning.published import find_spec
from flax_rerank.planning.report import as_dict, as_text, training_as_dict, training_as_text
from flax_rerank.planning.topology import find_topology
from flax_rerank.planning.training import Training, plan_training
from flax_rerank.planning.workload import SHARD_ROWS, Workload, longest, of_lengths, of_sample
from flax_rerank.training.lora import LoRASettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `flax-rerank plan`."""
    parser.add_argument(
        "model", metavar="MODEL", help="a folder with config.json, the name of a published model, or of one on the hub"
    )
    parser.add_argument(
        "--topology", required=True, metavar="T", help="chip and layout of a TPU slice, v5e:2x4; or GPUs, h100:8"
    )
    parser.add_argument("--mesh", metavar="M", help="data=2,model=4; by default all that divide are tried")
    add_replicate(parser)
    job = parser.add_argument_group("job", "By default all pairs have the greatest length that --max-length allows.")
    job.add_argument("--pairs", type=_count, metavar="N", help="to score, as in 100e6")
    lengths = job.add_mutually_exclusive_group()
    lengths.add_argument(
        "--lengths",
        type=Path,
        metavar="FILE",
        help='JSON, tokens of the pairs: [200, 312, ...] or {"200": count, ...}',
    )
    lengths.add_argument("--sample", type=Path, metavar="FILE", help="pairs like those to score, .jsonl or .parquet")
    job.add_argument("--query-tokens", type=_count, default=16, metavar="N", help="tokens of the query, for --lengths")
    job.add_argument("--price", type=_price, metavar="P", help="of a chip for an hour")
    training = parser.add_argument_group(
        "training", "With --train, the plan is that of a training of inputs of the length --max-length."
    )
    training.add_argument("--train", action="store_true", help="plan a training instead of a scoring job")
    training.add_argument(
        "--examples", type=_count, metavar="N", help="queries of the training, each as often as it is seen"
    )
    for name, text in {
        "train_group_size": "passages to a query",
        "per_device_train_batch_size": "queries in a micro batch, for each device on the mesh's data axis",
        "gradient_accumulation_steps": "micro batches in a step",
    }.items():
        default = getattr(Training, name)
        option = "--" + name.replace("_", "-")
        training.add_argument(option, type=_count, default=default, metavar="N", help=f"{text} (default: {default})")
    training.add_argument(
        "--gradient-checkpointing", action="store_true", help="compute the layers twice and keep only their inputs"
    )
    training.add_argument("--lora-rank", type=_count, metavar="N", help="train an adapter of this rank, and no more")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw pairs/s over meshes and lengths")
    parser.add_argument(
        "--plot-lengths", nargs="+", type=int, default=[128, 256, 512], metavar="N", help="by default 128 256 512"
    )
    add_model_class(parser)
    group = parser.add_argument_group("settings of the reranker", "The checkpoint or the class has the defaults.")
    add_settings(group, lambda field: field.metadata["kept"] or field.name in ("batch_size", "dtype", "cache_dir"))


def run(args: argparse.Namespace) -> int:
    """Print the plan. The exit code is 0 if the model fits, 1 if not.

    Raises:
        ValueError: an unknown topology, or an impossible mesh or option.
        ImportError: libtpu, for a TPU topology, or matplotlib, for a plot, is not installed.
        OSError: a file cannot be read.
    """
    # Planning runs nothing on a device, and this machine's may be busy.
    jax.config.update("jax_platforms", "cpu")
    topology = find_topology(args.topology)
    with naming_options(args.model):
        spec = find_spec(args.model, args.model_class, **given_settings(args))
    options: dict[str, Any] = {"mesh": args.mesh, "price": args.price}
    if args.train:
        found = plan_training(spec, topology, _training(args), **options)
        print(json.dumps(training_as_dict(found), indent=2) if args.json else training_as_text(found))
        return 0 if found.step is not None else 1
    workload = _workload(args)
    plan = make_plan(spec, topology, workload, **options)
    nearest = None if plan.best is not None else nearest_that_fits(spec, topology, workload, **options)
    if args.plot is not None:
        plots = {}
        for length in sorted(set(args.plot_lengths)):
            shorter = replace(spec, settings=replace(spec.settings, max_length=length))
            plots[length] = make_plan(shorter, topology, longest(None), compile_all=True, **options)
        plot_speeds(plots, args.plot)
    print(json.dumps(as_dict(plan, nearest), indent=2) if args.json else as_text(plan, nearest))
    return 0 if plan.best is not None else 1


def _training(args: argparse.Namespace) -> Training:
    given = {field.name: getattr(args, field.name) for field in fields(Training) if field.name != "lora"}
    return Training(**given, lora=None if args.lora_rank is None else LoRASettings(args.lora_rank))


def _workload(args: argparse.Namespace) -> Workload:
    if args.lengths is not None:
        return of_lengths(args.lengths, args.pairs, args.query_tokens)
    if args.sample is None:
        return longest(args.pairs)
    source = open_source([str(args.sample)])
    shards = source.shards(SHARD_ROWS)
    pairs = [(row.query, row.passage) for row in source.read(shards[0]) if isinstance(row, Row)] if shards else []
    if not pairs:
        raise ValueError(f"{args.sample} has no pairs")
    return of_sample(args.sample, pairs, args.pairs or sum(shard.rows for shard in shards))


def _count(text: str) -> int:
    try:
        count = int(float(text))
    except (ValueError, OverflowError):
        count = 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1, as in 100e6")
    return count


def _price(text: str) -> float:
    price = float(text)
    if not 0 <= price < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a price")
    return price
