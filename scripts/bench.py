"""Score the same pairs with this project and with FlagEmbedding, side by side: times, their ratio, score differences.

FlagEmbedding runs in an interpreter of its own (--reference-python): it needs other versions of its dependencies.
Both score in float32 on CPU, take turns, and are timed after a warm-up call, which for this project compiles.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from flax_rerank import FlaxAutoReranker

WORKER = """
import json, sys, time
real, sys.stdout = sys.stdout, sys.stderr
import FlagEmbedding
name, model, path, options = sys.argv[1:]
pairs = [[p["query"], p["passage"]] for p in map(json.loads, open(path, encoding="utf-8"))]
llm = {} if name == "FlagReranker" else {"use_fp16": name != "FlagLLMReranker"}
reranker = getattr(FlagEmbedding, name)(model, devices="cpu", **llm)
for line in sys.stdin:
    chosen = pairs[: int(line)]
    start = time.perf_counter()
    scores = reranker.compute_score(chosen, **json.loads(options))
    print(json.dumps([time.perf_counter() - start, scores]), file=real, flush=True)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a PyTorch checkpoint, which both can load")
    parser.add_argument("--input", required=True, help='JSON lines with "query" and "passage"')
    parser.add_argument("--reference-python", required=True, help="the Python of an environment with FlagEmbedding")
    parser.add_argument("--pairs", type=int, nargs="+", help="how many of the pairs to score; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--options", default="{}", help='arguments of compute_score, as JSON: {"max_length": 256}')
    args = parser.parse_args()

    pairs = [(p["query"], p["passage"]) for p in map(json.loads, Path(args.input).read_text("utf-8").splitlines())]
    options = json.loads(args.options)
    reranker = FlaxAutoReranker.from_finetuned(args.model, dtype="float32", devices="cpu", show_progress_bar=False)
    name = type(reranker).__name__.replace("Flax", "Flag")
    command = [args.reference_python, "-c", WORKER, name, args.model, args.input, args.options]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as reference:
        for count in args.pairs or [len(pairs)]:
            print(compare(reranker, reference, pairs[:count], args.rounds, options))
        reference.stdin.close()
    return 0


def compare(
    reranker: Any, reference: subprocess.Popen, pairs: list[tuple[str, str]], rounds: int, options: dict[str, Any]
) -> str:
    """One line for one number of pairs."""
    start = time.perf_counter()
    output = reranker.score(pairs, **options)
    first = time.perf_counter() - start
    ask_reference(reference, len(pairs))
    ours, theirs = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        scores = reranker.compute_score(pairs, **options)
        ours.append(time.perf_counter() - start)
        seconds, expected = ask_reference(reference, len(pairs))
        theirs.append(seconds)
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    difference = float(np.abs(np.asarray(scores) - np.asarray(expected)).max())
    return (
        f"{len(pairs)} pairs: {len(pairs) / statistics.median(ours):.1f} pairs/s, FlagEmbedding "
        f"{len(pairs) / statistics.median(theirs):.1f} pairs/s, ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}); first call with compilation {first:.1f} s; "
        f"{len(output.shapes)} shapes, {output.padding_tokens / output.computed_tokens:.1%} padding; "
        f"largest score difference {difference:.1e}"
    )


def ask_reference(reference: subprocess.Popen, count: int) -> tuple[float, list[float]]:
    """Seconds and scores of FlagEmbedding for the first `count` pairs."""
    print(count, file=reference.stdin, flush=True)
    answer = reference.stdout.readline()
    if not answer:
        raise RuntimeError("the reference stopped; run its command by hand to see why")
    return tuple(json.loads(answer))


if __name__ == "__main__":
    sys.exit(main())
