"""Find the mesh of a topology on which a model scores a job fastest, bound its speed, and price it. Needs no TPU."""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from flax_rerank.cli.loading import add_model_class, add_replicate, add_settings, given_settings, naming_options
from flax_rerank.jobs.rows import Row
from flax_rerank.jobs.sources import open_source
from flax_rerank.planning.plan import make_plan, nearest_that_fits
from flax_rerank.planning.plot import plot_speeds
from flax_rerank.planning.published import find_spec
from flax_rerank.planning.report import as_dict, as_text
from flax_rerank.planning.topology import find_topology
from flax_rerank.planning.workload import SHARD_ROWS, Workload, longest, of_lengths, of_sample


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
    workload = _workload(args)
    with naming_options(args.model):
        spec = find_spec(args.model, args.model_class, **given_settings(args))
    options: dict[str, Any] = {"mesh": args.mesh, "price": args.price}
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
