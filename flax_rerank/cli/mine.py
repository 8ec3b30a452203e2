"""Add hard negatives and a teacher's scores to training data; can be stopped at any time and started again."""

import argparse
import sys

from flax_rerank.cli.loading import add_model_class, add_replicate, add_settings, given_settings, naming_options
from flax_rerank.cli.messages import show_messages
from flax_rerank.cli.options import add_options, given
from flax_rerank.training.mining import MiningSettings, mine

GROUPS = {
    "data": ["input", "output", "candidate_pool", "run", "queries", "corpus", "overwrite"],
    "negatives": [
        *("range_for_sampling", "negative_number", "sampling_strategy", "fill", "keep_negatives", "seed"),
        *("absolute_margin", "relative_margin", "max_score", "min_score", "allow_false_positives"),
    ],
    "teacher": ["teacher", "candidate_number", "shard_rows", "show_progress_bar"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `flax-rerank mine`."""
    for title, names in GROUPS.items():
        add_options(parser.add_argument_group(title), MiningSettings, names)
    add_model_class(parser)
    group = parser.add_argument_group("settings of the teacher", "The checkpoint or the class has the defaults.")
    add_settings(group, lambda field: True)
    add_replicate(group)


def run(args: argparse.Namespace) -> int:
    """Mine, or go on with it, and say what was added.

    Raises:
        As `flax_rerank.training.mining.mine`; a setting that the teacher's class does not have is a ValueError that
        names its option.
    """
    settings = MiningSettings(**given(args, MiningSettings))
    reranker = given_settings(args)
    reranker.pop("show_progress_bar", None)  # one of `MiningSettings` too
    if args.model_class is not None:
        reranker["model_class"] = args.model_class
    show_messages()
    with naming_options(str(settings.teacher)):
        mined = mine(settings, **reranker)
    said = [f"{mined.negatives:,} negatives added to {mined.examples:,} lines"]
    if mined.short:
        said.append(f"lines with fewer than {settings.negative_number}: {mined.short:,}")
    if mined.left_out:
        said.append(f"without any, and left out: {mined.left_out:,}")
    print(f"{settings.output}: {'; '.join(said)}", file=sys.stderr)
    return 0
