"""Score the same pairs with this project and with FlagEmbedding, side by side: speed, memory, and score differences.

Each side runs in a process of its own, FlagEmbedding in an interpreter of its own (--reference-python): it needs other
versions of its dependencies. They take turns call by call, on the same CPUs, and the one that waits sleeps.

Workloads: "interactive" scores one query with 100 passages, another query in each round; "bulk" many pairs of all
lengths in one call; "cold" starts a process and scores one pair, the files being in the page cache. The first two are
timed after a first call, in which this project compiles. Run it on a machine that does nothing else: PyTorch's threads
wait for each other, and a busy CPU slows FlagEmbedding far more than this project ("CPU of others" in the table).

    bench.py --reference-python REF/bin/python --input pairs.jsonl --model FOLDER
    bench.py --reference-python REF/bin/python --input pairs.jsonl --models bge-reranker-v2-gemma --layers 4 \\
        --tokenizers FOLDER
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from benchmark.models import PUBLISHED, make_model
from benchmark.protocol import Worker
from benchmark.report import as_markdown, largest_difference, plot, summarize
from benchmark.workloads import Pair, bulk_pairs, interactive_calls, read_pairs

WORKLOADS = ("interactive", "bulk", "cold")
WARM_UP_PAIRS = 8
TYPICAL_CHARACTERS = 300
PRODUCT_SIZE = {"cpu": 2048, "gpu": 8192}


class Bench:
    """One model on both sides.

    Args:
        args: the command's options.
        model: its folder.
        init: arguments of both rerankers.
        reference_options: for FlagEmbedding's calls, beside those of both.
    """

    def __init__(
        self, args: argparse.Namespace, model: Path, init: dict[str, Any], reference_options: dict[str, Any]
    ) -> None:
        self._args = args
        self._init = init
        self._options = {"ours": args.options, "theirs": args.options | reference_options}
        self._settings = {"model": str(model.resolve()), "init": init}
        self._settings |= {name: vars(args)[name] for name in ("threads", "dtype", "devices")}

    def run(self, pairs: list[Pair]) -> dict[str, Any]:
        """Measure the workloads that the options name."""
        setting: dict[str, Any] = {"arguments": self._init, "options": self._options}
        with self._ours() as ours:
            setting["ours"] = ours.ask("describe")
        self._class = setting["ours"]["class"].replace("Flax", "Flag")
        workloads: dict[str, Any] = {}
        if "cold" in self._args.workloads:  # first, while all memory is free
            workloads["cold"] = self._cold(min(pairs, key=lambda pair: abs(len(pair[1]) - TYPICAL_CHARACTERS)))
        if {"interactive", "bulk"} & set(self._args.workloads):
            with self._ours() as ours, self._theirs() as theirs:
                self._workers = {"ours": ours, "theirs": theirs}
                self._peaks: dict[str, float] = {}
                setting["theirs"] = theirs.ask("describe")
                setting["loaded"] = {side: worker.ask("memory") for side, worker in self._workers.items()}
                if "interactive" in self._args.workloads:
                    workloads["interactive"] = self._warm(interactive_calls(pairs, self._args.rounds))
                if "bulk" in self._args.workloads:
                    workloads["bulk"] = self._warm([bulk_pairs(pairs, self._args.pairs)] * self._args.rounds)
                for workload, (side, peak) in product(("interactive", "bulk"), self._peaks.items()):
                    if workload in workloads:
                        figures = workloads[workload][side]
                        figures["peak_flops_per_second"] = peak
                        figures["share_of_peak"] = figures["flops_per_second"] / peak
        return {"setting": setting, "workloads": workloads}

    def _ours(self, compile_cache: str | None = None) -> Worker:
        share = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # the other process takes memory of the GPU too
        settings = self._settings | {"compile_cache": compile_cache}
        return Worker(sys.executable, "benchmark.ours", settings, share)

    def _theirs(self) -> Worker:
        settings = self._settings | {"class": self._class}
        return Worker(self._args.reference_python, "benchmark.theirs", settings, dict(self._args.reference_env))

    def _score(self, side: str, pairs: list[Pair]) -> dict[str, Any]:
        return self._workers[side].ask("score", pairs=pairs, options=self._options[side])

    def _warm(self, calls: list[list[Pair]]) -> dict[str, Any]:
        """Time the calls, one a round, on both sides in turn."""
        first = [self._score("ours", call) for call in {id(call): call for call in calls}.values()]
        self._score("theirs", calls[0][:WARM_UP_PAIRS])
        rounds: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
        differences, host_shares = [], []
        for call in calls:
            for side, worker in self._workers.items():
                found = worker.ask("product", size=PRODUCT_SIZE[self._args.devices])["flops_per_second"]
                self._peaks[side] = max(found, self._peaks.get(side, 0.0))
            answers = {side: self._score(side, call) for side in rounds}
            differences.append(largest_difference(*(answer.pop("scores") for answer in answers.values())))
            alone = self._workers["ours"].ask("device_alone", pairs=call, options=self._options["ours"])
            host_shares.append(max(0.0, 1 - alone["seconds"] / answers["ours"]["seconds"]))
            answers["ours"]["device_alone_seconds"] = alone["seconds"]
            for side, answer in answers.items():
                rounds[side].append(answer | {name: alone[name] for name in ("tokens", "flops")})
        summary = summarize(rounds, len(calls[0]))
        for side, worker in self._workers.items():
            summary[side] = worker.ask("memory") | summary[side]
        summary["ours"] |= {
            "first_seconds": [each["seconds"] for each in first],
            "compiles": sum(each["compiles"] for each in first),
            "compile_seconds": sum(each["compile_seconds"] for each in first),
            "host_share": statistics.median(host_shares),
            "score_difference": max(differences),
        }
        return summary

    def _cold(self, pair: Pair) -> dict[str, Any]:
        """Time from the start of a process to the score of one pair."""
        rounds: dict[str, list[dict[str, Any]]] = {"ours": [], "ours, cache filled": [], "theirs": []}
        with tempfile.TemporaryDirectory() as filled:
            for _ in range(self._args.rounds + 1):
                with tempfile.TemporaryDirectory() as empty:
                    rounds["ours"].append(self._start("ours", pair, empty))
                rounds["ours, cache filled"].append(self._start("ours", pair, filled))
                rounds["theirs"].append(self._start("theirs", pair))
        kept = {side: answers[1:] for side, answers in rounds.items()}  # the first one reads files, fills the cache
        summary = summarize(kept, 1)
        for side, answers in kept.items():
            summary[side]["peak_bytes"] = max(each["peak_bytes"] for each in answers)
            if side != "theirs":
                summary[side]["compiles"] = answers[-1]["compiles"]
                summary[side]["compile_seconds"] = statistics.median(each["compile_seconds"] for each in answers)
                scores = answers[-1]["scores"], kept["theirs"][-1]["scores"]
                summary[side]["score_difference"] = largest_difference(*scores)
        return summary

    def _start(self, side: str, pair: Pair, compile_cache: str | None = None) -> dict[str, Any]:
        start = time.perf_counter()
        with self._ours(compile_cache) if side == "ours" else self._theirs() as worker:
            answer = worker.ask("score", pairs=[pair], options=self._options[side])
            seconds = time.perf_counter() - start
            return worker.ask("memory") | answer | {"seconds": seconds}


def describe_machine() -> dict[str, Any]:
    """The machine that this runs on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0].partition(":")[2].strip() if names else "unknown CPU",
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": sys.version.split()[0],
    }


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's options; ends the process if they contradict each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--model", type=Path, metavar="FOLDER", help="a PyTorch checkpoint, which both can load")
    models.add_argument("--models", nargs="+", choices=PUBLISHED, help="published models, with random weights")
    parser.add_argument("--layers", type=int, metavar="N", help="of the published models, instead of all")
    parser.add_argument("--tokenizers", type=Path, metavar="FOLDER", help="holds xlm-roberta, gemma and llama2")
    parser.add_argument("--input", required=True, type=Path, metavar="FILE", help='JSON lines: "query", "passage"')
    parser.add_argument("--reference-python", required=True, metavar="PYTHON", help="with FlagEmbedding installed")
    parser.add_argument("--reference-env", nargs="+", type=_variable, default=[], metavar="NAME=VALUE")
    parser.add_argument("--reference-options", type=json.loads, default={}, help="for FlagEmbedding's calls alone")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=WORKLOADS)
    parser.add_argument("--pairs", type=int, default=5000, metavar="N", help="of the bulk workload")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N", help="CPUs that both may use; all by default")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="on a GPU, theirs is fp16")
    parser.add_argument("--devices", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--init", type=json.loads, default={}, help="JSON: arguments of both rerankers")
    parser.add_argument("--options", type=json.loads, default={}, help="JSON: arguments of both sides' compute_score")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw pairs/s and ratios here")
    args = parser.parse_args(arguments)
    if args.models and args.tokenizers is None:
        parser.error("--models need --tokenizers")
    if args.rounds < 1:
        parser.error("--rounds is at least 1")
    return args


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text} is not of the form NAME=VALUE")
    return name, value


def main() -> int:
    args = parse_arguments()
    pairs = read_pairs(args.input)
    shown = ("workloads", "pairs", "rounds", "layers", "threads", "dtype", "devices", "reference_env")
    settings = {name: vars(args)[name] for name in shown}
    result: dict[str, Any] = {"machine": describe_machine(), "settings": settings, "models": {}}
    if args.model is not None:
        bench = Bench(args, args.model, args.init, args.reference_options)
        result["models"][args.model.resolve().name] = bench.run(pairs)
    for name in args.models or ():
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / name
            init = make_model(name, folder, args.tokenizers, args.layers) | args.init
            on_cpu = PUBLISHED[name].reference_options if args.devices == "cpu" else {}
            result["models"][name] = Bench(args, folder, init, on_cpu | args.reference_options).run(pairs)
    text = as_markdown(result)
    print(text)
    if args.markdown is not None:
        args.markdown.write_text(text + "\n", encoding="utf-8")
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.plot is not None:
        plot(result, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
