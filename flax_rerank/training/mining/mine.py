"""Add hard negatives and teacher scores to training data."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from tqdm import tqdm

from flax_rerank.jobs import JobOptions, files, score_files
from flax_rerank.jobs.formats import json_line
from flax_rerank.jobs.lock import locked
from flax_rerank.jobs.sources.records import numbered_lines, parse_object
from flax_rerank.training.mining.candidates import open_candidates
from flax_rerank.training.mining.draw import draw
from flax_rerank.training.mining.examples import Example, read_examples
from flax_rerank.training.mining.settings import MiningSettings

# What a line says of the negatives that it had.
REPLACED = ("pos_scores", "neg_scores", "neg_id")
POSITIVE, KEPT, DRAWN = "pos", "kept", "neg"

# The scores of the positives, None without a teacher; the negatives to add, and those that are kept, with scores.
Chosen = tuple[list[float] | None, list[tuple[str, float]], list[tuple[str, float]]]


class Mined(NamedTuple):
    """What mining did.

    Attributes:
        examples: lines of the input.
        negatives: that were added.
        short: lines that got fewer negatives than were asked for.
        left_out: those of them that have none, with which nothing can be trained. They are not in the output.
    """

    examples: int
    negatives: int
    short: int
    left_out: int


def mine(settings: MiningSettings, **reranker: Any) -> Mined:
    """Add hard negatives to training data, and the scores of a teacher. A second call continues where the first one
    was stopped: the teacher scores by a job in the folder `<output>.mining`, which is removed at the end.

    The input and the pool of passages are in memory.

    Args:
        settings: the files, and which passages are taken.
        reranker: settings of the teacher, arguments of `FlaxAutoReranker.from_finetuned`.

    Raises:
        ValueError: a line at fault, as "path:line: reason"; settings of a reranker without a teacher; several cutoff
            layers; and as `score_files`, if what the job depends on has changed.
        FileExistsError: the output exists, and is not to be overwritten.
        ImportError: bm25s is not installed.
        SystemExit: SIGTERM (143) or SIGINT (130) came while the teacher scored.
    """
    if reranker and settings.teacher is None:
        raise ValueError(f"{next(iter(reranker))} is a setting of a teacher, and none is given")
    layers = reranker.get("cutoff_layers")
    if isinstance(layers, Sequence) and len(layers) > 1:
        raise ValueError(f"a teacher has one score for each pair: give one of the {len(layers)} cutoff_layers")
    if files.exists(settings.output) and not settings.overwrite:
        raise FileExistsError(f"{settings.output} exists. Give another output, or overwrite")
    with locked(settings.output):
        examples = read_examples(settings.input)
        drawn = _draw_all(examples, settings)
        if settings.teacher is None:
            return _write(settings, examples, ((None, [(text, 0.0) for text in texts], []) for texts in drawn))
        folder = f"{settings.output}.mining"
        scores = _score(folder, examples, drawn, settings, reranker)
        mined = _write(settings, examples, _chosen(scores, examples, settings))
        files.remove(folder)
        return mined


def _draw_all(examples: Sequence[Example], settings: MiningSettings) -> list[list[str]]:
    if settings.negative_number == 0:
        return [[] for _ in examples]
    candidates = open_candidates(settings, examples)
    keys = [*candidates.texts]
    hidden = None if settings.show_progress_bar is None else not settings.show_progress_bar
    with tqdm(examples, "search", unit="query", disable=hidden) as progress:
        return [draw(example, candidates, keys, settings) for example in progress]


def _score(
    folder: str,
    examples: Sequence[Example],
    drawn: Sequence[Sequence[str]],
    settings: MiningSettings,
    reranker: Mapping[str, Any],
) -> str:
    """Let the teacher score all positives and what was drawn, in a job. Returns the file of scores."""
    pairs, scores = f"{folder}/pairs.jsonl", f"{folder}/scores.jsonl"
    # A second start writes the same file, or the job refuses to go on.
    with files.open_output(pairs) as sink:
        for example, texts in zip(examples, drawn, strict=True):
            kept = example.neg if settings.keep_negatives else []
            for role, passages in {POSITIVE: example.pos, KEPT: kept, DRAWN: texts}.items():
                for text in passages:
                    sink.write(
                        json_line({"line": example.line, "role": role, "query": example.query, "passage": text})
                    )
    assert settings.teacher is not None
    options = JobOptions(
        input=pairs,
        output=scores,
        overwrite=settings.overwrite,
        shard_rows=settings.shard_rows,
        show_progress_bar=settings.show_progress_bar,
    )
    score_files(settings.teacher, options, **reranker)
    return scores


def _chosen(scores: str, examples: Sequence[Example], settings: MiningSettings) -> Iterator[Chosen]:
    """For each line, what the teacher's scores allow."""
    records = (parse_object(line) for _, line in numbered_lines(scores))
    lines = groupby(records, key=itemgetter("line"))
    number, group = next(lines, (None, iter(())))
    for example in examples:
        by_role: dict[str, list[tuple[str, float]]] = {POSITIVE: [], KEPT: [], DRAWN: []}
        if number == example.line:
            for record in group:
                by_role[record["role"]].append((record["passage"], record["score"]))
            number, group = next(lines, (None, iter(())))
        kept = by_role[KEPT]
        positives = [score for _, score in by_role[POSITIVE]]
        if len(positives) < len(example.pos) or (settings.keep_negatives and len(kept) < len(example.neg)):
            raise ValueError(
                f"{settings.input}:{example.line}: the teacher cannot score all passages: see {scores}.rejects.jsonl"
            )
        allowed = [(text, score) for text, score in by_role[DRAWN] if settings.accepts(score, positives)]
        if settings.sampling_strategy == "top":
            allowed.sort(key=lambda passage: -passage[1])
        yield positives, allowed[: settings.negative_number], kept


def _write(settings: MiningSettings, examples: Sequence[Example], chosen: Iterable[Chosen]) -> Mined:
    """Write the lines with their negatives."""
    negatives = short = left_out = 0
    with files.open_output(settings.output) as sink:
        for example, (positives, added, kept) in zip(examples, chosen, strict=True):
            record = {name: value for name, value in example.record.items() if name not in REPLACED}
            if positives is None:
                record["neg"] = [*(example.neg if settings.keep_negatives else []), *(text for text, _ in added)]
            else:
                record["neg"] = [text for text, _ in (*kept, *added)]
                record["pos_scores"] = positives
                record["neg_scores"] = [score for _, score in (*kept, *added)]
            negatives += len(added)
            short += len(added) < settings.negative_number
            if record["neg"] or settings.negative_number == 0:
                sink.write(json_line(record))
            else:
                left_out += 1
    return Mined(len(examples), negatives, short, left_out)
