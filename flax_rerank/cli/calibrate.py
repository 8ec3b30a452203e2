"""Fit probabilities to labelled pairs, and write a Flax checkpoint that gives them."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from flax_rerank.auto import FlaxAutoReranker
from flax_rerank.calibration import cross_fit, fit, reliability
from flax_rerank.calibration.curve import METHODS
from flax_rerank.calibration.plot import plot_reliability
from flax_rerank.calibration.store import store
from flax_rerank.checkpoint import refuse_existing
from flax_rerank.cli.loading import add_model_class, add_replicate, add_settings, given_settings, naming_options
from flax_rerank.evaluation.data import open_set
from flax_rerank.jobs.sources.records import numbered_lines

Labelled = list[tuple[str, str, bool]]
OWN = ("normalize", "calibration")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `flax-rerank calibrate`."""
    parser.add_argument("model", metavar="MODEL", help="a folder (PyTorch or Flax) or a name on the Hugging Face hub")
    parser.add_argument("out", metavar="OUT", type=Path, help="the Flax checkpoint to write")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    data = parser.add_argument_group("labelled pairs")
    data.add_argument("--pairs", metavar="FILE", help="JSON lines with query, passage and label, a number")
    data.add_argument("--beir", metavar="DIR", help="the judged pairs of a folder of BEIR, or of irds:NAME")
    data.add_argument("--split", metavar="NAME", help="of the folder's qrels, by default test or the only one")
    data.add_argument(
        "--relevant-from", type=float, default=1, metavar="N", help="the least label of a relevant passage (1)"
    )
    parser.add_argument(
        "--method", choices=METHODS, default="platt", help="two parameters, or any rising curve (isotonic)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the reliability diagram")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    add_model_class(parser)
    group = parser.add_argument_group("settings of the reranker", "OUT keeps those of the model.")
    add_settings(group, lambda field: field.name not in OWN)
    add_replicate(group)


def run(args: argparse.Namespace) -> int:
    """Score the pairs, fit a calibration, write the checkpoint, and print the error before and after.

    Raises:
        ValueError: a line at fault; pairs that cannot be calibrated; several cutoff layers.
        FileExistsError: OUT exists and may not be replaced.
        OSError: a file cannot be read or written.
        ImportError: scipy or matplotlib is not installed.
    """
    refuse_existing(args.out, args.overwrite)
    pairs = _labelled(args)
    settings = given_settings(args)
    show = not args.no_progress and sys.stderr.isatty()
    with naming_options(args.model):
        reranker = FlaxAutoReranker.from_finetuned(args.model, model_class=args.model_class, **settings)
    relevant = np.array([label for _, _, label in pairs])
    texts = [(query, passage) for query, passage, _ in pairs]
    raw = reranker.score(texts, normalize=False, show_progress_bar=show).scores
    layer = None
    if isinstance(raw, dict):
        if len(raw) > 1:
            raise ValueError(f"the pairs have scores after each of the layers {list(raw)}: give one cutoff layer")
        ((layer, raw),) = raw.items()
    assert not isinstance(raw, dict)
    sigmoids = reranker.spec.prompt_format.normalized(raw)
    calibration = fit(raw, relevant, args.method, layer)
    left_out = cross_fit(raw, relevant, [query for query, _, _ in pairs], args.method)
    found = {"sigmoid": reliability(sigmoids, relevant), args.method: reliability(left_out, relevant)}
    store(args.model, args.out, calibration, model_class=args.model_class, overwrite=args.overwrite, **settings)
    if args.plot is not None:
        plot_reliability(found, str(args.model), args.plot)
    if args.json:
        facts: dict[str, Any] = {"pairs": len(pairs), "relevant": int(relevant.sum())}
        facts |= {"calibration": asdict(calibration), "reliability": {name: asdict(found[name]) for name in found}}
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    print(f"{args.out}: calibrated with {len(pairs):,} pairs, {int(relevant.sum()):,} of them relevant")
    before, after = (each.error for each in found.values())
    print(f"expected calibration error {before:.4f} by sigmoid, {after:.4f} by {args.method} (queries left out)")
    return 0


def _labelled(args: argparse.Namespace) -> Labelled:
    if (args.pairs is None) == (args.beir is None):
        raise ValueError("give labelled pairs, by --pairs or by --beir")
    if args.pairs is not None:
        return [*_read_pairs(args.pairs, args.relevant_from)]
    data = open_set(args.beir, split=args.split, candidates="judged")
    return [
        (data.queries[qid], data.passages[docid], relevance >= args.relevant_from)
        for qid, judged in data.qrels.items()
        for docid, relevance in judged.items()
    ]


def _read_pairs(path: str, relevant_from: float) -> Iterator[tuple[str, str, bool]]:
    for number, line in numbered_lines(path):
        try:
            row = json.loads(line)
            texts, label = [row["query"], row["passage"]], row["label"]
            if not all(isinstance(text, str) for text in texts) or not isinstance(label, int | float):
                raise TypeError("query and passage must be strings, and label a number")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        except KeyError as error:
            raise ValueError(f"{path}:{number}: there is no {error}") from error
        yield (*texts, label >= relevant_from)
