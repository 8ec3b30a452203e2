"""Score the same pairs with this project and with FlagEmbedding, side by side: speed, memory, and score differences.

Each side runs in a process of its own, FlagEmbedding in an interpreter of its own (--reference-python): it needs other
versions of its dependencies. They take turns call by call, on the same CPUs, and the one that waits sleeps.

Workloads: "interactive" scores one query with 100 passages, another query in each round; "bulk" many pairs of all
lengths in one call; "cold" starts a process and scores one pair, the files being in the page cache. The first two are
timed after a first call, in which this project compiles.

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
from pathlib import Path
from typing import Any

from benchmark.models import PUBLISHED, make_model
from benchmark.protocol import Worker
from benchmark.report import as_markdown, largest_difference, plot, ratios, summarize
from benchmark.workloads import Pair, bulk_pairs, interactive_calls, model_flops, read_pairs

WORKLOADS = ("interactive", "bulk", "cold")
WARM_UP_PAIRS = 8
PRODUCT_SIZE = {"cpu": 2048, "gpu": 8192}


class Bench:
    """One model on both sides.

    Args:
        model: its folder.
        init: arguments of both rerankers.
        reference_options: those of FlagEmbedding's calls beside the ones of both.
    """

    def __init__(
        self, args: argparse.Namespace, model: str, init: dict[str, Any], reference_options: dict[str, Any]
    ) -> None:
        self._args = args
        self._options = {"ours": args.options, "theirs": args.options | reference_options}
        self._settings = {"model": model, "init": init} | {k: vars(args)[k] for k in ("threads", "dtype", "devices")}

    def run(self, pairs: list[Pair]) -> dict[str, Any]:
        """Measure every workload that was asked for."""
        with self._ours() as ours:
            self._ours_facts = ours.ask("describe")
        self._config = self._ours_facts.pop("source_config")
        workloads: dict[str, Any] = {}
        if "cold" in self._args.workloads:  # first, while all memory is free
            workloads["cold"] = self._cold(min(pairs, key=lambda pair: abs(len(pair[1]) - 300)))
        theirs_facts: dict[str, Any] = {}
        if set(self._args.workloads) - {"cold"}:
            with self._ours() as ours, self._theirs() as theirs:
                self._workers = {"ours": ours, "theirs": theirs}
                theirs_facts = theirs.ask("describe")
                loaded = {side: worker.ask("memory") for side, worker in self._workers.items()}
                if "interactive" in self._args.workloads:
                    workloads["interactive"] = self._warm(interactive_calls(pairs, self._args.rounds))
                if "bulk" in self._args.workloads:
                    workloads["bulk"] = self._warm([bulk_pairs(pairs, self._args.pairs)] * self._args.rounds)
        else:
            loaded = {}
        note = "; ".join(
            f"{side} {json.dumps(value)}"
            for side, value in {
                "arguments": self._settings["init"],
                "options": self._options["ours"],
                "FlagEmbedding's options": self._options["theirs"],
                "flax-rerank": self._ours_facts,
                "FlagEmbedding": theirs_facts,
            }.items()
        )
        return {"note": note, "config": self._config, "loaded": loaded, "workloads": workloads}

    def _ours(self, compile_cache: str | None = None) -> Worker:
        own_gpu_share = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # the other process takes memory of it too
        settings = self._settings | {"compile_cache": compile_cache}
        return Worker(sys.executable, "benchmark.ours", settings, own_gpu_share)

    def _theirs(self) -> Worker:
        settings = self._settings | {"class": self._ours_facts["class"].replace("Flax", "Flag")}
        return Worker(self._args.reference_python, "benchmark.theirs", settings, dict(self._args.reference_env))

    def _score(self, side: str, pairs: list[Pair]) -> dict[str, Any]:
        return self._workers[side].ask("score", pairs=pairs, options=self._options[side])

    def _warm(self, calls: list[list[Pair]]) -> dict[str, Any]:
        """Time the calls, one a round, on both sides in turn."""
        ours = self._workers["ours"]
        distinct = list({id(call): call for call in calls}.values())
        lengths = [ours.ask("lengths", pairs=call, options=self._options["ours"]) for call in distinct]
        by_call = {id(call): found for call, found in zip(distinct, lengths, strict=True)}
        first = [self._score("ours", call) for call in distinct]
        self._score("theirs", calls[0][:WARM_UP_PAIRS])
        rounds: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
        device_alone, host_shares, differences = [], [], []
        for call in calls:
            for side, answers in rounds.items():
                answers.append(self._score(side, call))
            scores = [rounds[side][-1].pop("scores") for side in rounds]
            differences.append(largest_difference(*scores))
            alone = ours.ask("device_alone", pairs=call, options=self._options["ours"])["seconds"]
            device_alone.append(alone)
            host_shares.append(max(0.0, 1 - alone / rounds["ours"][-1]["seconds"]))
        tokens = [sum(by_call[id(call)]["tokens"]) for call in calls]
        flops = [
            model_flops(self._config, self._settings["init"], found["tokens"], found["passage_tokens"])
            for found in (by_call[id(call)] for call in calls)
        ]
        summary = summarize(rounds, len(calls[0]), tokens, flops) | {"score_difference": max(differences)}
        for side, worker in self._workers.items():
            summary[side] |= worker.ask("memory")
            peak = worker.ask("product", size=PRODUCT_SIZE[self._args.devices])["flops_per_second"]
            summary[side] |= {"peak_flops_per_second": peak, "rounds": rounds[side]}
            summary[side]["share_of_peak"] = summary[side]["flops_per_second"] / peak
        summary["ours"] |= {
            "first_seconds": [each["seconds"] for each in first],
            "compiles": sum(each["compiles"] for each in first),
            "compile_seconds": sum(each["compile_seconds"] for each in first),
            "device_alone_seconds": device_alone,
            "host_share": statistics.median(host_shares),
        }
        return summary

    def _cold(self, pair: Pair) -> dict[str, Any]:
        """Time from the start of a process to the score of one pair."""
        starts: dict[str, list[dict[str, Any]]] = {"ours": [], "ours, cache filled": [], "theirs": []}
        with tempfile.TemporaryDirectory() as filled:
            for _ in range(self._args.rounds + 1):
                with tempfile.TemporaryDirectory() as empty:
                    starts["ours"].append(self._start("ours", pair, empty))
                starts["ours, cache filled"].append(self._start("ours", pair, filled))
                starts["theirs"].append(self._start("theirs", pair))
        summary: dict[str, Any] = {"pairs": 1}
        theirs = [each["seconds"] for each in starts["theirs"][1:]]
        for side, every in starts.items():
            kept = every[1:]  # the first start reads the files and fills the cache
            taken = [each["seconds"] for each in kept]
            summary[side] = {
                "all_seconds": taken,
                "seconds": statistics.median(taken),
                "peak_bytes": max(each["peak_bytes"] for each in kept),
            }
            if side != "theirs":
                summary[side] |= {"ratio": ratios(taken, theirs), "compiles": kept[-1]["compiles"]}
                summary[side]["compile_seconds"] = statistics.median(each["compile_seconds"] for each in kept)
        summary["score_difference"] = largest_difference(*(starts[side][-1]["scores"] for side in ("ours", "theirs")))
        return summary

    def _start(self, side: str, pair: Pair, compile_cache: str | None = None) -> dict[str, Any]:
        start = time.perf_counter()
        with self._ours(compile_cache) if side == "ours" else self._theirs() as worker:
            answer = worker.ask("score", pairs=[pair], options=self._options[side])
            seconds = time.perf_counter() - start
            return answer | worker.ask("memory") | {"seconds": seconds}


def describe_machine() -> dict[str, Any]:
    """What all of it ran on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0].partition(":")[2].strip() if names else "unknown CPU",
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": sys.version.split()[0],
    }


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's options; ends the process where they do not go together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--model", metavar="FOLDER", help="a PyTorch checkpoint, which both can load")
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
        raise argparse.ArgumentTypeError(f"{text} is no NAME=VALUE")
    return name, value


def main() -> int:
    args = parse_arguments()
    pairs = read_pairs(args.input)
    settings = {
        name: vars(args)[name] for name in ("dtype", "devices", "threads", "rounds", "layers", "reference_env")
    }
    result: dict[str, Any] = {"machine": describe_machine(), "settings": settings, "models": {}}
    if args.model:
        name = Path(args.model).resolve().name
        result["models"][name] = Bench(args, str(Path(args.model).resolve()), args.init, args.reference_options).run(
            pairs
        )
    for name in args.models or ():
        with tempfile.TemporaryDirectory() as folder:
            init = make_model(name, Path(folder) / name, args.tokenizers, args.layers) | args.init
            on_cpu = PUBLISHED[name].reference_options if args.devices == "cpu" else {}
            bench = Bench(args, str(Path(folder) / name), init, on_cpu | args.reference_options)
            result["models"][name] = bench.run(pairs)
    text = as_markdown(result)
    print(text)
    if args.markdown:
        args.markdown.write_text(text + "\n", encoding="utf-8")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        plot(result, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
