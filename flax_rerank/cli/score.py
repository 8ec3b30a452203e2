"""Score a file of pairs, one JSON object {"query": ..., "passage": ...} a line."""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from tqdm import tqdm

from flax_rerank.cli.loading import add_model_arguments, load_reranker
from flax_rerank.rerankers import AbsReranker, RerankOutput

STANDARD_STREAM = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `flax-rerank score`."""
    parser.add_argument("--model", required=True, help="a folder (PyTorch or Flax), or a name on the Hugging Face hub")
    parser.add_argument("--input", required=True, help="JSON lines with query and passage; - for standard input")
    parser.add_argument(
        "--output",
        required=True,
        help='the same lines with "score" (with several cutoff layers "score_8", ...); - for standard output',
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.add_argument(
        "--chunk-size", type=_positive, default=10_000, metavar="N", help="lines read, scored and written at a time"
    )
    parser.add_argument("--no-progress", action="store_true", help="show no progress bars")
    add_model_arguments(parser)
    group = parser.add_argument_group(
        "options of the reranker", "Defaults are those of its class.", argument_default=argparse.SUPPRESS
    )
    group.add_argument("--devices", nargs="+", type=_device, metavar="D", help='"cpu", "gpu", "tpu", "cuda:0", 0, ...')
    group.add_argument("--batch-size", type=_positive, metavar="N", help="times max-length: tokens in a step at most")
    group.add_argument("--query-max-length", type=int, metavar="N", help="tokens of the query")
    group.add_argument("--max-length", type=int, metavar="N", help="tokens of the pair")
    group.add_argument("--normalize", action="store_true", help="give sigmoid(logit) instead of the logit")
    for role in ("query", "passage"):
        group.add_argument(
            f"--{role}-instruction",
            dest=f"{role}_instruction_for_rerank",
            metavar="TEXT",
            help=f"put before each {role}",
        )
    group.add_argument("--prompt", metavar="TEXT", help="the question after the passage (LLM rerankers)")
    layers = {"nargs": "+", "type": int, "metavar": "N"}
    group.add_argument("--cutoff-layers", **layers, help="layers to score after (layerwise, lightweight)")
    group.add_argument("--compress-layers", **layers, help="layers to compress before (lightweight)")
    group.add_argument("--compress-ratio", type=int, metavar="N", help="tokens that become one (lightweight)")
    group.add_argument("--head-index", choices=["reference", "layer"], help="which heads score (lightweight)")
    group.add_argument("--attention-softcap", choices=["reference", "config"], help="see README (lightweight)")


def run(args: argparse.Namespace) -> int:
    """Score the lines of the input chunk by chunk, and say how fast it went.

    Raises:
        FileExistsError: the output is there and may not be replaced.
        ValueError, FloatingPointError: a line that cannot be scored, named by its number; all lines before it are
            in the output. And as `load_reranker`.
    """
    to_file = args.output != STANDARD_STREAM
    if to_file:
        if os.path.exists(args.output) and os.path.exists(args.input) and os.path.samefile(args.input, args.output):
            raise ValueError(f"input and output are the same file, {args.input}")
        if os.path.exists(args.output) and not args.overwrite:
            raise FileExistsError(f"{args.output} exists; pass --overwrite to replace it")
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    from_file = args.input != STANDARD_STREAM
    with open(args.input if from_file else sys.stdin.fileno(), "rb", closefd=from_file) as source:
        started = time.perf_counter()
        reranker = load_reranker(args.model, args)
        loaded = time.perf_counter()
        show_progress = not args.no_progress and sys.stderr.isatty()
        totals = Totals()
        with (
            # A lone surrogate is no UTF-8. As a backslash escape it is JSON, and the field is what it was.
            open(
                args.output if to_file else sys.stdout.fileno(),
                "w",
                encoding="utf-8",
                errors="backslashreplace",
                newline="\n",
                closefd=to_file,
            ) as sink,
            tqdm(
                total=os.fstat(source.fileno()).st_size or None,
                unit="B",
                unit_scale=True,
                disable=not show_progress,
            ) as bar,
        ):
            for chunk in read_chunks(source, args.input, args.chunk_size):
                score_chunk(reranker, chunk, args.input, sink, totals, show_progress)
                bar.update(sum(line.size for line in chunk))
        scored = time.perf_counter()
    print(totals.summary(loaded - started, scored - loaded), file=sys.stderr)
    return 0


class Line(NamedTuple):
    """A line of the input: its number from 1, its bytes, its object."""

    number: int
    size: int
    record: dict[str, Any]


@dataclass
class Totals:
    """What all chunks together took."""

    pairs: int = 0
    tokens: int = 0
    computed_tokens: int = 0
    truncated: int = 0
    shapes: set[tuple[int, int]] = field(default_factory=set)

    def add(self, output: RerankOutput) -> None:
        self.pairs += len(output.tokens)
        self.tokens += int(output.tokens.sum())
        self.computed_tokens += output.computed_tokens
        self.truncated += int(output.truncated.sum())
        self.shapes.update(output.shapes)

    def summary(self, load_seconds: float, seconds: float) -> str:
        padding = 1 - self.tokens / max(self.computed_tokens, 1) if self.pairs else 0.0
        return (
            f"{self.pairs} pairs in {seconds:.1f} s after {load_seconds:.1f} s of loading: "
            f"{self.pairs / seconds:.1f} pairs/s, {self.tokens / seconds:.0f} tokens/s, {padding:.1%} padding, "
            f"{self.truncated} truncated, {len(self.shapes)} shapes"
        )


def read_chunks(source: Iterable[bytes], name: str, size: int) -> Iterator[list[Line]]:
    """The lines of a file, `size` at a time; blank ones are skipped.

    Raises:
        ValueError: a line that is no pair, as "name:number: reason", after the lines before it were given.
    """
    chunk: list[Line] = []
    for number, text in enumerate(source, start=1):
        if text.isspace():
            continue
        try:
            record = parse(text)
        except ValueError as error:
            yield chunk
            raise ValueError(f"{name}:{number}: {error}") from error
        chunk.append(Line(number, len(text), record))
        if len(chunk) == size:
            yield chunk
            chunk = []
    yield chunk


def parse(text: bytes) -> dict[str, Any]:
    """The object of one line.

    Raises:
        ValueError: no UTF-8, no JSON, no object, or one without the strings "query" and "passage".
    """
    try:
        record = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"no JSON object but {type(record).__name__}")
    for name in ("query", "passage"):
        if name not in record:
            raise ValueError(f'no "{name}"')
        if not isinstance(record[name], str):
            raise ValueError(f'"{name}" is no string but {type(record[name]).__name__}')
    return record


def score_chunk(
    reranker: AbsReranker, chunk: list[Line], name: str, sink: TextIO, totals: Totals, show_progress: bool
) -> None:
    """Score lines, write them and add up what it took.

    Raises:
        ValueError, FloatingPointError: the first line that cannot be scored, as "name:number: reason", after the
            lines before it were written.
    """
    if not chunk:
        return
    pairs = [(line.record["query"], line.record["passage"]) for line in chunk]
    try:
        output = reranker.score(pairs, show_progress_bar=show_progress)
    except (ValueError, FloatingPointError) as error:
        pair = re.search(r"\bpair (\d+)\b", str(error))
        if pair is None:
            raise
        line = int(pair[1])
        score_chunk(reranker, chunk[:line], name, sink, totals, show_progress)
        reason = str(error).replace(pair[0], "the pair", 1)
        raise type(error)(f"{name}:{chunk[line].number}: {reason}") from error
    names, columns = zip(*columns_of(output).items(), strict=True)
    for line, scores in zip(chunk, zip(*columns, strict=True), strict=True):
        record = line.record | dict(zip(names, scores, strict=True))
        sink.write(json.dumps(record, ensure_ascii=False) + "\n")
    sink.flush()
    totals.add(output)


def columns_of(output: RerankOutput) -> dict[str, list[float]]:
    """Scores by the name of their field: "score", or "score_8", "score_16", ... for several cutoff layers."""
    by_layer = output.scores if isinstance(output.scores, dict) else {None: output.scores}
    return {"score" if len(by_layer) == 1 else f"score_{layer}": s.tolist() for layer, s in by_layer.items()}


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _device(text: str) -> str | int:
    return int(text) if text.isdecimal() else text
