"""Upload a checkpoint folder to the Hugging Face hub, with a model card."""

import argparse
from pathlib import Path

from flax_rerank.cli.loading import add_model_class
from flax_rerank.saving.push import push_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `flax-rerank push`."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a Flax checkpoint, or an exported PyTorch folder")
    parser.add_argument("repo_id", metavar="REPOSITORY", help="as name/model; it is made if it does not exist")
    parser.add_argument("--private", action="store_true", default=None, help="make it a private one")
    parser.add_argument("--revision", metavar="BRANCH", help="by default main")
    parser.add_argument("--message", default="Upload a reranker", metavar="TEXT", help="of the commit")
    add_model_class(parser)


def run(args: argparse.Namespace) -> int:
    """Upload, and print the address of the commit. The token is that of HF_TOKEN or of `hf auth login`.

    Raises:
        As `push_folder`.
    """
    options = {name: getattr(args, name) for name in ("model_class", "private", "revision", "message")}
    print(push_folder(args.folder, args.repo_id, **options))
    return 0
