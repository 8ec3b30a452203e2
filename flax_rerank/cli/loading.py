"""What the subcommands share: the options that choose a reranker and its settings."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import Field, fields
from typing import Any

from flax_rerank.cli.options import add_options, given
from flax_rerank.settings import SETTINGS, RerankerModelClass, UnknownSettingError
from flax_rerank.sharding import ShardingRules

ALL_FIELDS: dict[str, "Field[Any]"] = {field.name: field for kind in SETTINGS.values() for field in fields(kind)}


def add_model_class(parser: argparse.ArgumentParser) -> None:
    """The option that says the kind of reranker."""
    parser.add_argument(
        "--model-class",
        choices=[model_class.value for model_class in RerankerModelClass],
        default=None,
        help="the kind of reranker, where neither name nor config.json says it",
    )


def add_settings(group: argparse._ActionsContainer, wanted: Callable[["Field[Any]"], bool]) -> None:
    """An option for each setting of any kind of reranker that is `wanted`. One that is not given is left out of the
    namespace: the checkpoint or the class has a default."""
    left = {name for name, field in ALL_FIELDS.items() if wanted(field)}
    for kind in SETTINGS.values():
        names = left & {field.name for field in fields(kind)}
        add_options(group, kind, names)
        left -= names


def add_replicate(group: argparse._ActionsContainer) -> None:
    """The option that makes the sharding rules."""
    axes = [field.name for field in fields(ShardingRules)]
    group.add_argument("--replicate", nargs="+", choices=axes, metavar="AXIS", help=f"do not split: {', '.join(axes)}")


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given as options."""
    settings = {name: value for kind in SETTINGS.values() for name, value in given(args, kind).items()}
    if getattr(args, "replicate", None) is not None:
        settings["sharding_rules"] = ShardingRules(**dict.fromkeys(args.replicate))
    return settings


@contextmanager
def naming_options(model: str) -> Iterator[None]:
    """A setting that the model's kind does not have is a ValueError that names the option."""
    try:
        yield
    except UnknownSettingError as error:
        option = ALL_FIELDS[error.name].metadata.get("flag", "--" + error.name.replace("_", "-"))
        raise ValueError(f"{option} is not an option for {model}: {error}") from error
