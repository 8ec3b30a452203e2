"""Score pairs, or rerank a TREC run: a job that can be stopped at any time and started again."""

import argparse
import logging
import signal
import sys
from dataclasses import fields
from typing import Any

from flax_rerank.cli.loading import add_model_arguments, add_scoring_arguments, given_arguments, naming_options
from flax_rerank.cli.options import add_options, given
from flax_rerank.jobs.options import JobOptions
from flax_rerank.jobs.score import score_files
from flax_rerank.jobs.summary import in_words
from flax_rerank.sharding import ShardingRules

AXES = tuple(field.name for field in fields(ShardingRules))
GROUPS = {
    "input": ["input", "query_field", "passage_field", "run", "queries", "corpus", "beir", "top_k"],
    "output": ["output", "format", "tag", "overwrite"],
    "job": ["shard_rows", "strict", "warmup", "compile_cache", "show_progress_bar"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `flax-rerank score`."""
    parser.add_argument("--model", required=True, help="a folder (PyTorch or Flax), or a name on the Hugging Face hub")
    add_model_arguments(parser)
    for title, names in GROUPS.items():
        add_options(parser.add_argument_group(title), JobOptions, names)
    machines = parser.add_argument_group("machines")
    rest = [field.name for field in fields(JobOptions) if not any(field.name in names for names in GROUPS.values())]
    add_options(machines, JobOptions, rest)
    _add_reranker_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Start the job or go on with it, and say what it took.

    Raises:
        As `score_files`; a setting that the reranker's class does not have is a ValueError that names its option.
    """
    logging.basicConfig(format="flax-rerank: %(message)s")
    logging.getLogger("flax_rerank").setLevel(logging.INFO)
    settings = _settings(args)
    try:
        with naming_options(args.model, settings):
            result = score_files(args.model, JobOptions(**given(args, JobOptions)), **settings)
    except SystemExit:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # a second one would end the process with another code
        raise
    if result.summary is not None:
        print(in_words(result.summary), file=sys.stderr)
        if not result.complete:
            print(
                f"other processes have not finished their shards yet: no {args.output}/summary.json", file=sys.stderr
            )
    return 0


def _add_reranker_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "options of the reranker", "Defaults are those of its class.", argument_default=argparse.SUPPRESS
    )
    group.add_argument("--devices", nargs="+", type=_device, metavar="D", help='"cpu", "gpu", "tpu", "cuda:0", 0, ...')
    group.add_argument("--mesh", metavar="M", help='"data=4,model=2"; by default all devices share each batch')
    group.add_argument("--replicate", nargs="+", choices=AXES, metavar="AXIS", help=f"do not split: {', '.join(AXES)}")
    group.add_argument("--batch-size", type=int, metavar="N", help="times max-length: tokens in a step at most")
    add_scoring_arguments(group)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    settings = given_arguments(args)
    if "mesh" in args:
        settings["mesh"] = args.mesh
    if "replicate" in args:
        settings["sharding_rules"] = ShardingRules(**dict.fromkeys(args.replicate))
    return settings


def _device(text: str) -> str | int:
    return int(text) if text.isdecimal() else text
