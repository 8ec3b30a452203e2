"""Score pairs, or rerank a TREC run: a job that can be stopped at any time and started again."""

import argparse
import sys
from dataclasses import fields

from flax_rerank.cli.loading import add_model_class, add_replicate, add_settings, given_settings, naming_options
from flax_rerank.cli.messages import show_messages
from flax_rerank.cli.options import add_options, given
from flax_rerank.jobs.options import JobOptions
from flax_rerank.jobs.score import score_files
from flax_rerank.jobs.summary import in_words

GROUPS = {
    "input": [
        "input",
        "query_field",
        "passage_field",
        "run",
        "queries",
        "corpus",
        "beir",
        "top_k",
        "max_line_bytes",
        "max_text_chars",
    ],
    "output": ["output", "format", "tag", "overwrite"],
    "job": ["shard_rows", "strict", "warmup", "show_progress_bar"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `flax-rerank score`."""
    parser.add_argument("--model", required=True, help="a folder (PyTorch or Flax), or a name on the Hugging Face hub")
    add_model_class(parser)
    for title, names in GROUPS.items():
        add_options(parser.add_argument_group(title), JobOptions, names)
    machines = parser.add_argument_group("machines")
    rest = [field.name for field in fields(JobOptions) if not any(field.name in names for names in GROUPS.values())]
    add_options(machines, JobOptions, rest)
    group = parser.add_argument_group("settings of the reranker", "The checkpoint or the class has the defaults.")
    add_settings(group, lambda field: True)
    add_replicate(group)


def run(args: argparse.Namespace) -> int:
    """Start the job or go on with it, and say what it took.

    Raises:
        As `score_files`; a setting that the reranker's class does not have is a ValueError that names its option.
    """
    show_messages()
    options = JobOptions(**given(args, JobOptions))
    with naming_options(args.model):
        result = score_files(args.model, options, model_class=args.model_class, **given_settings(args))
    if result.summary is not None:
        print(in_words(result.summary), file=sys.stderr)
        if not result.complete:
            print(
                f"other processes have not finished their shards yet: no {args.output}/summary.json", file=sys.stderr
            )
    return 0
