"""What the subcommands share: the options that choose and load a reranker."""

import argparse
import re
from typing import Any

from flax_rerank.auto import FlaxAutoReranker, RerankerModelClass
from flax_rerank.dtypes import DTYPES
from flax_rerank.rerankers import AbsReranker

RERANKER_ARGUMENTS = (
    "model_class",
    "peft_path",
    "dtype",
    "cache_dir",
    "devices",
    "batch_size",
    "query_max_length",
    "max_length",
    "normalize",
    "query_instruction_for_rerank",
    "passage_instruction_for_rerank",
    "prompt",
    "cutoff_layers",
    "compress_layers",
    "compress_ratio",
    "head_index",
    "attention_softcap",
)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every reranker; one that is not given is left out of the namespace, the class has the default."""
    parser.add_argument(
        "--model-class",
        choices=[model_class.value for model_class in RerankerModelClass],
        default=argparse.SUPPRESS,
        help="the kind of reranker, where neither name nor config.json says it",
    )
    parser.add_argument(
        "--peft-path", default=argparse.SUPPRESS, metavar="P", help="a LoRA adapter to merge: folder or hub name"
    )
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default=argparse.SUPPRESS, help="of the parameters and the computation"
    )
    parser.add_argument(
        "--cache-dir", default=argparse.SUPPRESS, metavar="D", help="where snapshots from the hub are kept"
    )


def load_reranker(model: str, args: argparse.Namespace, **more: Any) -> AbsReranker:
    """The reranker that `args` describe, made with the options that were given and no others.

    Raises:
        ValueError: an option that the reranker's class does not have; and as `FlaxAutoReranker.from_finetuned`.
    """
    given = {name: getattr(args, name) for name in RERANKER_ARGUMENTS if name in args} | more
    try:
        return FlaxAutoReranker.from_finetuned(model, **given)
    except TypeError as error:
        unexpected = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
        if unexpected is None or unexpected[2] not in given:
            raise
        option = "--" + unexpected[2].replace("_", "-")
        raise ValueError(f"{option} is no option for {model}: {unexpected[1]} has none such") from error
