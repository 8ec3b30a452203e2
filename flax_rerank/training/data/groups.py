"""Groups drawn from examples, as FlagEmbedding draws them.

All draws are those of Python's `random.Random`, which are equal in Python 3.11 and 3.13.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from flax_rerank.training.data.examples import Example
from flax_rerank.training.data.settings import DataSettings

SHUFFLED_FROM = 100  # characters, without this one


@dataclass
class Group:
    """A query with the passages that one step sees.

    Attributes:
        example: where they come from.
        passages: at most `train_group_size`, a positive first if there is one.
        labels: of each.
        teacher: a teacher's scores, or None.
    """

    example: Example
    passages: list[str]
    labels: list[float]
    teacher: list[float] | None


def draw(example: Example, rng: Random, settings: DataSettings) -> Group:
    """Draw one group.

    Of examples with graded labels, or with `graded`: a positive, if there is one, and any other passages, each once.
    Of the others: a positive and negatives, which repeat where there are fewer than the group takes; or, with
    `in_batch_negatives`, each once, so that the group is to be filled by `add_other_queries`.
    """
    positives = [index for index, label in enumerate(example.labels) if label > 0]
    graded = example.graded or settings.graded
    first = [rng.choice(positives)] if positives else []
    passages = [_shuffled(example.passages[index], rng, settings.shuffle_ratio) for index in first]
    others = [index for index, label in enumerate(example.labels) if (graded or label <= 0) and index not in first]
    wanted = settings.train_group_size - len(first) - (0 if graded else settings.in_batch_negatives)
    if graded or settings.in_batch_negatives:
        wanted = min(wanted, len(others))
    elif len(others) < wanted:
        others = others * math.ceil(wanted / len(others))
    chosen = rng.sample(others, wanted)
    passages += [example.passages[index] for index in chosen]
    chosen = first + chosen
    labels = [example.labels[index] if graded else float(index in first) for index in chosen]
    return Group(example, passages, labels, None if example.teacher is None else [example.teacher[i] for i in chosen])


def add_other_queries(groups: Sequence[Group], rng: Random, size: int) -> None:
    """Fill the groups of one micro batch up to `size` with passages drawn for other queries, each once: not those of
    an equal query, nor known positives of the query."""
    drawn = [list(group.passages) for group in groups]
    for group in groups:
        known = {
            *group.passages,
            *(text for text, label in zip(group.example.passages, group.example.labels, strict=True) if label),
        }
        others = {
            passage: None
            for other, passages in zip(groups, drawn, strict=True)
            if other.example.query != group.example.query
            for passage in passages
            if passage not in known
        }
        chosen = rng.sample(list(others), min(size - len(group.passages), len(others)))
        group.passages += chosen
        group.labels += [0.0] * len(chosen)


def _shuffled(text: str, rng: Random, ratio: float) -> str:
    """The text, or its thirds in another order with blanks between."""
    if not ratio or len(text) <= SHUFFLED_FROM or rng.random() >= ratio:
        return text
    size = len(text) // 3 + 1
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    rng.shuffle(pieces)
    return " ".join(pieces)
