"""Measure how well a reranker, a TREC run or BM25 ranks a test set, and compare it with another."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flax_rerank.auto import FlaxAutoReranker
from flax_rerank.cli.loading import add_model_class, add_replicate, add_settings, given_settings, naming_options
from flax_rerank.cli.sweep import add_sweep, print_sweep
from flax_rerank.evaluation.compare import compare, confidence_interval
from flax_rerank.evaluation.data import CANDIDATES, EvaluationSet, open_set
from flax_rerank.evaluation.measures import MEASURES, Evaluation, measure, parse_measures
from flax_rerank.evaluation.systems import FIRST_STAGE, is_model, prepare, run_of, runs_of
from flax_rerank.evaluation.trec import write_run
from flax_rerank.jobs import files
from flax_rerank.jobs.formats import TAG, json_line

SYSTEM = "a folder (PyTorch or Flax) or a name on the Hugging Face hub; a TREC run (.trec, .run, .txt); or bm25"
SET_OPTIONS = ("queries", "corpus", "qrels", "run", "split", "candidates", "top_k", "always_rerank_positives")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `flax-rerank evaluate`."""
    parser.add_argument("system", metavar="MODEL", help=SYSTEM)
    parser.add_argument(
        "--baseline",
        metavar="MODEL",
        help="compare with this one: as MODEL, or first-stage, which is the default if the candidates have scores",
    )
    parser.add_argument(
        "--measures", nargs="+", default=list(MEASURES), metavar="M", help="of ir-measures: nDCG@10 RR@10 AP R@100 ..."
    )
    data = parser.add_argument_group("test set")
    data.add_argument(
        "--beir",
        metavar="DIR",
        help="a folder of BEIR, with run.txt or without, or of NanoBEIR; or irds:NAME, a set of ir_datasets",
    )
    data.add_argument("--queries", metavar="FILE", help=".jsonl (BEIR) or .tsv")
    data.add_argument("--corpus", metavar="FILE", help=".jsonl (BEIR) or .tsv")
    data.add_argument("--qrels", metavar="FILE", help="judgments, TREC's or BEIR's")
    data.add_argument("--run", metavar="FILE", help="a TREC run with the candidates")
    data.add_argument(
        "--split", metavar="NAME", help="of the folder's qrels, by default test or the only one; NanoNQ, ..."
    )
    data.add_argument(
        "--candidates", choices=CANDIDATES, help="what is ranked; by default run, or judged if there is no run"
    )
    data.add_argument("--top-k", type=int, default=100, metavar="N", help="candidates of a query at most (100)")
    data.add_argument(
        "--always-rerank-positives",
        action=argparse.BooleanOptionalAction,
        help="add the relevant passages that the candidates lack; by default for NanoBEIR alone",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object")
    output.add_argument("--per-query", metavar="FILE", help="write the values of each query, .jsonl (.gz, .zst)")
    output.add_argument("--output", metavar="FILE", help="write the scores as a TREC run")
    output.add_argument("--no-progress", action="store_true", help="show no progress bars")
    add_sweep(parser)
    add_model_class(parser)
    group = parser.add_argument_group("settings of the reranker", "The checkpoint or the class has the defaults.")
    add_settings(group, lambda field: True)
    add_replicate(group)


def run(args: argparse.Namespace) -> int:
    """Print the measures.

    Raises:
        ValueError: an option or a line of a file at fault.
        OSError: a file cannot be read or written.
        ImportError: ir-measures or bm25s is not installed.
    """
    parse_measures(args.measures)  # before the scores, which can take hours
    settings = given_settings(args)
    if settings and not any(map(is_model, filter(None, (args.system, args.baseline)))):
        raise ValueError(f"{next(iter(settings))} is a setting of a reranker, and {args.system} is not one")
    wrong = ("baseline", "per_query", "output") if args.sweep else ("plot",)
    for name in wrong:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} does not go {'with' if args.sweep else 'without'} --sweep")
    data = open_set(args.beir, **{name: getattr(args, name) for name in SET_OPTIONS})
    if args.sweep:
        if not is_model(args.system):
            raise ValueError(f"--sweep is for a reranker, and {args.system} is not one")
        with naming_options(args.system):
            print_sweep(args, data, settings)
        return 0
    evaluations = _evaluate(args.system, data, args)
    if args.output is not None:
        if len(evaluations) > 1:
            raise ValueError(f"a TREC run has one score: give one of the {len(evaluations)} cutoff layers")
        (only,) = evaluations.values()
        write_run(args.output, only.run, TAG)
    baseline = args.baseline or (FIRST_STAGE if data.first_stage is not None and args.system != FIRST_STAGE else None)
    others = {} if baseline is None else _evaluate(baseline, data, args)
    if len(others) > 1:
        raise ValueError(f"{baseline} has several scores for each pair, one for each cutoff layer: give one of them")
    other = next(iter(others.items()), None)
    if args.per_query is not None:
        _write_per_query(args.per_query, {**others, **evaluations})
    rows = [_row(name, found, other, kind) for name, found in evaluations.items() for kind in args.measures]
    queries, pairs = len(data.qrels), len(data.ids())
    if args.json:
        print(json.dumps({"queries": queries, "pairs": pairs, "measures": rows}, indent=2, ensure_ascii=False))
    else:
        print(_table(queries, pairs, rows))
    return 0


def _evaluate(system: str, data: EvaluationSet, args: argparse.Namespace) -> dict[str, Evaluation]:
    """The evaluation of a system, by its name, or of each cutoff layer."""
    if not is_model(system):
        return {system: measure(run_of(system, data), data.qrels, args.measures)}
    with naming_options(system):
        reranker = FlaxAutoReranker.from_finetuned(system, model_class=args.model_class, **given_settings(args))
    show = not args.no_progress and sys.stderr.isatty()
    runs = runs_of(reranker.run(prepare(reranker, data, show_progress_bar=show), show_progress_bar=show), data)
    return {
        system if len(runs) == 1 else f"{system}, layer {layer}": measure(scores, data.qrels, args.measures)
        for layer, scores in runs.items()
    }


def _row(name: str, found: Evaluation, other: tuple[str, Evaluation] | None, kind: str) -> dict[str, Any]:
    """What is known of one system by one measure."""
    interval = confidence_interval(found.per_query[kind])
    row = {"system": name, "measure": kind, "mean": found.mean[kind], "interval": interval}
    if other is not None:
        row["comparison"] = {
            "baseline": other[0],
            "mean": other[1].mean[kind],
            **asdict(compare(found, other[1], kind)),
        }
    return row


def _table(queries: int, pairs: int, rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"{queries:,} queries, {pairs:,} pairs; in brackets 95 % confidence intervals"]
    for row in rows:
        lines.append(f"{row['system']}: {row['measure']} {row['mean']:.4f}{_interval(row['interval'])}")
        if "comparison" in row:
            other = row["comparison"]
            p_value = "" if other["p_value"] is None else f", p = {other['p_value']:.2g}"
            lines.append(
                f"    {other['difference']:+.4f}{_interval(other['interval'], '+')} against {other['baseline']} "
                f"({other['mean']:.4f}){p_value}: {other['better']} queries better, {other['worse']} worse, "
                f"{other['equal']} equal"
            )
    return "\n".join(lines)


def _interval(interval: tuple[float, float] | None, sign: str = "") -> str:
    return "" if interval is None else f" [{interval[0]:{sign}.4f}, {interval[1]:{sign}.4f}]"


def _write_per_query(path: str, evaluations: Mapping[str, Evaluation]) -> None:
    with files.open_output(path) as sink:
        for name, found in evaluations.items():
            for qid in found.per_query[next(iter(found.per_query))]:
                values = {kind: by_query[qid] for kind, by_query in found.per_query.items()}
                sink.write(json_line({"system": name, "qid": qid, **values}))
