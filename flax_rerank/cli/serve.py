"""Serve a reranker over HTTP: the requests of Cohere, Jina, vLLM and text-embeddings-inference."""

import argparse

from flax_rerank.auto import FlaxAutoReranker
from flax_rerank.cli.loading import add_model_class, add_replicate, add_settings, given_settings, naming_options
from flax_rerank.cli.messages import show_messages
from flax_rerank.cli.options import add_options, given
from flax_rerank.rerankers import AbsReranker
from flax_rerank.serving.options import ServeOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `flax-rerank serve`."""
    parser.add_argument("model", metavar="MODEL", help="a folder (PyTorch or Flax), or a name on the Hugging Face hub")
    add_options(parser.add_argument_group("server"), ServeOptions)
    add_model_class(parser)
    group = parser.add_argument_group("settings of the reranker", "The checkpoint or the class has the defaults.")
    add_settings(group, lambda field: field.name != "normalize")  # a request says it
    add_replicate(group)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT, which exit with 143 and 130.

    Raises:
        ImportError: Starlette, uvicorn or prometheus_client is not installed.
        And as `flax_rerank.serving.run.serve`.
    """
    try:
        from flax_rerank.serving.run import serve
    except ModuleNotFoundError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'flax-rerank[serve]'") from error
    show_messages()
    options = ServeOptions(**given(args, ServeOptions))

    def load() -> AbsReranker:
        with naming_options(args.model):
            return FlaxAutoReranker.from_finetuned(args.model, model_class=args.model_class, **given_settings(args))

    serve(load, args.model, options)
    return 0
