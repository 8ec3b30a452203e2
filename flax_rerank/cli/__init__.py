"""The command `flax-rerank`: convert and inspect checkpoints, score files of pairs, plan that for TPUs."""

import argparse
import importlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

COMMANDS = {
    "calibrate": "fit probabilities to labelled pairs, and write a Flax checkpoint that gives them",
    "convert": "convert a PyTorch checkpoint to a Flax checkpoint, or back",
    "evaluate": "measure how well a reranker ranks a test set, and compare it with another",
    "inspect": "say what a checkpoint folder is, and whether it would load",
    "mine": "add hard negatives and a teacher's scores to training data",
    "models": "print the table of the rerankers that load here",
    "plan": "find the mesh on which a model scores a job fastest; needs no TPU",
    "push": "upload a checkpoint folder to the Hugging Face hub",
    "serve": "answer rerank requests over HTTP; needs the extra serve",
    "train": "fine-tune a reranker; can be stopped at any time and started again",
    "score": "score pairs, or rerank a TREC run; can be stopped at any time and started again",
}

SIGNALS = (signal.SIGTERM, signal.SIGINT)
EXIT_CODES = tuple(128 + number for number in SIGNALS)


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand and give its exit code.

    What the user can put right (a bad line, a missing file, an option that the model does not have) is one message
    on stderr and exit code 1; every other exception propagates. SIGTERM and SIGINT end the process with 143 and 130.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _handle(_exit)
    try:
        return _main(argv)
    except SystemExit as stop:
        if stop.code in EXIT_CODES:
            before = dict.fromkeys(SIGNALS, signal.SIG_IGN)  # a second one would change the exit code
        raise
    finally:
        for number, handler in before.items():
            _handle(handler, number)


def _main(argv: list[str] | None) -> int:
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
        _handle(_stop)
        return args.execute(args)
    except (ValueError, OSError, FloatingPointError, MemoryError, NotImplementedError, ImportError) as error:
        if args.debug:
            raise
        print(f"flax-rerank: {error}", file=sys.stderr)
        return 1


def _handle(handler: Any, *numbers: int) -> None:
    """Set the handler of signals. Only the main thread can; in others this does nothing."""
    if threading.current_thread() is threading.main_thread():
        for number in numbers or SIGNALS:
            signal.signal(number, handler)


def _exit(number: int, frame: FrameType | None) -> None:
    """End the process while packages are imported: nothing is to be cleaned up, and they swallow exceptions."""
    os._exit(128 + number)


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
