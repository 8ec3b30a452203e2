"""The command `flax-rerank`: convert and inspect checkpoints, score files of pairs, plan that for TPUs."""

import argparse
import sys

from flax_rerank.cli import convert, inspect, plan, score


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand and give its exit code.

    What the user can put right (a bad line, a missing file, an option that the model does not have) is one message
    on stderr and exit code 1; every other exception propagates.
    """
    parser = argparse.ArgumentParser(prog="flax-rerank", description="FlagEmbedding's rerankers in JAX and Flax.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in (("convert", convert), ("inspect", inspect), ("plan", plan), ("score", score)):
        subparser = subparsers.add_parser(name, description=command.__doc__, help=command.__doc__)
        command.add_arguments(subparser)
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        subparser.set_defaults(command=command.run)
    args = parser.parse_args(argv)
    try:
        return args.command(args)
    except (ValueError, OSError, FloatingPointError, MemoryError, NotImplementedError, ImportError) as error:
        if args.debug:
            raise
        print(f"flax-rerank: {error}", file=sys.stderr)
        return 1
