"""Fine-tune a reranker: a run that can be stopped at any time and goes on exactly as it would have."""

import argparse
import json
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from flax_rerank.cli.messages import show_messages
from flax_rerank.cli.options import add_options, given
from flax_rerank.training import train
from flax_rerank.training.data.settings import DataSettings
from flax_rerank.training.optimizer import AdamWSettings
from flax_rerank.training.settings import TrainingSettings

BESIDES = ("model_name_or_path", "train_data")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `flax-rerank train`."""
    parser.add_argument(
        "config",
        nargs="?",
        type=Path,
        metavar="CONFIG",
        help="a .json or .toml file of options; those given here count more",
    )
    parser.add_argument("--model-name-or-path", metavar="MODEL", help="a folder, or a name on the Hugging Face hub")
    parser.add_argument("--train-data", nargs="+", metavar="FILE", help="files of training data")
    parts: dict[str, type] = {"data": DataSettings, "optimizer": AdamWSettings}
    names = {title: [field.name for field in fields(kind)] for title, kind in parts.items()}
    known = {name for part in names.values() for name in part}
    names["run"] = [field.name for field in fields(TrainingSettings) if field.name not in known]
    for title, only in names.items():
        add_options(parser.add_argument_group(title), TrainingSettings, only)


def run(args: argparse.Namespace) -> int:
    """Train, and print where the model is.

    Raises:
        ValueError: an option of the file that does not exist.
        And as `flax_rerank.training.train`.
    """
    show_messages()
    options = {} if args.config is None else read_config(args.config)
    options |= given(args, TrainingSettings)
    options |= {name: value for name in BESIDES if (value := getattr(args, name)) is not None}
    model, data = (options.pop(name, None) for name in BESIDES)
    if not model or not data:
        raise ValueError("give --model-name-or-path and --train-data")
    result = train(model, data, TrainingSettings(**options))
    print(f"{result.model}: the parameters after step {result.step} of {result.steps}")
    for measures in result.evaluations[:1], result.evaluations[-1:]:
        for point in measures:
            print(
                ", ".join(
                    f"{name} {value:.4f}" if name != "step" else f"step {value}" for name, value in point.items()
                )
            )
    return 0


def read_config(file: Path) -> dict[str, Any]:
    """The options in a JSON or TOML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another suffix, a damaged file, an option that does not exist.
    """
    if file.suffix not in (".json", ".toml"):
        raise ValueError(f"{file} is neither .json nor .toml")
    text = file.read_text(encoding="utf-8")
    try:
        options = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise ValueError(f"{file} is not {file.suffix[1:].upper()}: {error}") from error
    if not isinstance(options, Mapping):
        raise ValueError(f"{file} must hold an object of options")
    known = {*BESIDES, *(field.name for field in fields(TrainingSettings))}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise ValueError(f"{file}: {', '.join(unknown)}: no such option; flax-rerank train --help lists them")
    return dict(options)
