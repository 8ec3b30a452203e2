"""Print the table of the rerankers that load here."""

import argparse
import json
from dataclasses import asdict

from flax_rerank.catalog import MODELS, as_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `flax-rerank models`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object for each row")


def run(args: argparse.Namespace) -> int:
    """Print it; the exit code is 0."""
    print("\n".join(json.dumps(asdict(entry)) for entry in MODELS) if args.json else as_table())
    return 0
