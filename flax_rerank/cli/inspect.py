"""Print what a checkpoint folder is, and whether it would load."""

import argparse
import json
from pathlib import Path
from typing import Any

from flax_rerank.conversion.inspect import inspect_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `flax-rerank inspect`."""
    parser.add_argument("path", metavar="PATH", type=Path, help="the folder of a PyTorch or Flax checkpoint")
    parser.add_argument("--check", action="store_true", help="compare the files with the hashes of the manifest")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print what was found. The exit code is 0 if the checkpoint would load, 1 if not.

    Raises:
        FileNotFoundError: PATH is not a folder.
        ValueError: --check for a folder that is not a Flax checkpoint.
    """
    found = inspect_folder(args.path, check=args.check)
    if args.json:
        print(json.dumps(found.facts | {"loads": found.loads, "reasons": found.reasons}, ensure_ascii=False, indent=2))
        return 0 if found.loads else 1
    facts = {name.replace("_", " "): _text(fact) for name, fact in found.facts.items() if fact not in (None, [], {})}
    width = max(map(len, facts))
    for name, text in facts.items():
        print(f"{name:<{width}}  {text}")
    print("it would load" if found.loads else "it would not load:")
    for reason in found.reasons:
        print(f"  - {reason}")
    return 0 if found.loads else 1


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(entry)}" for name, entry in value.items())
    if not isinstance(value, list):
        return str(value)
    return ", ".join(map(_text, value)) if len(value) < 10 else f"{value[0]} ... {value[-1]}, {len(value)} in all"
