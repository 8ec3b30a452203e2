"""The command `flax-rerank`: convert and inspect checkpoints, score files of pairs, plan that for TPUs."""

import argparse
import importlib
import sys

COMMANDS = {
    "convert": "convert a PyTorch checkpoint to a Flax checkpoint, or back",
    "inspect": "say what a checkpoint folder is, and whether it would load",
    "models": "print the table of the rerankers that load here",
    "plan": "find the mesh on which a model scores a job fastest; needs no TPU",
    "score": "score pairs, or rerank a TREC run; can be stopped at any time and started again",
}


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand and give its exit code.

    What the user can put right (a bad line, a missing file, an option that the model does not have) is one message
    on stderr and exit code 1; every other exception propagates.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="flax-rerank", description="FlagEmbedding's rerankers in JAX and Flax.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=text)
        if argv[:1] == [name]:  # the others are not imported
            command = importlib.import_module(f"flax_rerank.cli.{name}")
            subparser.description = command.__doc__
            command.add_arguments(subparser)
            subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
            subparser.set_defaults(execute=command.run)
    args = parser.parse_args(argv)
    try:
        return args.execute(args)
    except (ValueError, OSError, FloatingPointError, MemoryError, NotImplementedError, ImportError) as error:
        if args.debug:
            raise
        print(f"flax-rerank: {error}", file=sys.stderr)
        return 1
