"""One training example, and the forms of JSON objects that hold one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flax_rerank.field_types import fits
from flax_rerank.jobs.sources.records import require_texts

# 2 ** label is a gain in nDCG: labels of another kind, such as counts, would make the loss infinite.
MAX_LABEL = 30.0


class DataError(ValueError):
    """A training example that cannot be used. The message names file and line."""


@dataclass(frozen=True)
class Example:
    """A query and its passages.

    Attributes:
        where: file and line, for errors.
        query: the query.
        passages: all passages that are known for it.
        labels: of each, at least 0; above 0 for a positive.
        teacher: a teacher's score of each, or None.
        graded: the labels are more than positive or not: groups are drawn from all passages.
        prompt, query_prompt, passage_prompt: where this example has its own; they replace prompt and instructions.
    """

    where: str
    query: str
    passages: Sequence[str]
    labels: Sequence[float]
    teacher: Sequence[float] | None = None
    graded: bool = False
    prompt: str | None = None
    query_prompt: str | None = None
    passage_prompt: str | None = None


def check(example: Example, *, teacher: bool, max_label: float, positive: bool) -> None:
    """Raise DataError unless an example can be trained on.

    Args:
        example: the example.
        teacher: it needs teacher scores.
        max_label: its labels may not exceed this.
        positive: it needs a passage with a label above 0.
    """

    def fail(fault: str) -> None:
        raise DataError(f"{example.where}: {fault}")

    if not example.passages:
        fail("the group is empty: it needs passages")
    for passage in example.passages:
        try:
            require_texts(example.query, passage)
        except ValueError as error:
            fail(f"{error}; correct it, or leave it out")
    for label in example.labels:
        if not 0 <= label <= max_label:
            fail(f"the label {label} is not between 0 and {max_label:g}, where labels must be for this loss")
    positives = {passage for passage, label in zip(example.passages, example.labels, strict=True) if label > 0}
    if positive and not positives:
        fail("the query has no positive passage: give it one, or leave the query out")
    for passage, label in zip(example.passages, example.labels, strict=True):
        if label == 0 and passage in positives:
            fail(f"a positive is a negative of the same query too: {passage[:60]!r}; remove one of them")
    if teacher and example.teacher is None:
        fail(
            "teacher scores are missing, which knowledge_distillation and losses of teacher scores need: add "
            "pos_scores and neg_scores (in labelled rows: score)"
        )


OWN = ("prompt", "query_prompt", "passage_prompt")


def _flag(record: Mapping[str, Any], where: str) -> Example:
    """FlagEmbedding's rows: query, pos, neg, pos_scores, neg_scores, prompt, query_prompt, passage_prompt."""
    positives, negatives = _strings(record, "pos"), _strings(record, "neg") if _has(record, "neg") else []
    teacher: list[float] | None = None
    if _has(record, "pos_scores") or _has(record, "neg_scores"):
        teacher = []
        for name, passages in ("pos", positives), ("neg", negatives):
            scores = _numbers(record, f"{name}_scores") if passages or _has(record, f"{name}_scores") else []
            if len(scores) != len(passages):
                raise ValueError(
                    f'"{name}_scores" has {len(scores)} scores, "{name}" has {len(passages)} passages: give one each'
                )
            teacher += scores
    own: dict[str, Any] = {name: _string(record, name) for name in OWN if _has(record, name)}
    labels = [1.0] * len(positives) + [0.0] * len(negatives)
    return Example(where, _string(record, "query"), positives + negatives, labels, teacher, **own)


def _triplet(record: Mapping[str, Any], where: str) -> Example:
    """sentence-transformers' pairs and triplets: anchor or query, positive, negative or negative_1, negative_2, ..."""
    names = [name for name in record if name == "negative" or name.startswith("negative_")]
    negatives = [_string(record, name) for name in names if record[name] is not None]
    passages = [_string(record, "positive"), *negatives]
    return Example(where, _string(record, *QUERY), passages, [1.0] + [0.0] * len(negatives))


def _listed(record: Mapping[str, Any], where: str) -> Example:
    """sentence-transformers' lists: query, docs, labels."""
    passages, labels = _strings(record, *LISTS), _numbers(record, "labels")
    if len(passages) != len(labels):
        raise ValueError(f"there are {len(labels)} labels for {len(passages)} passages: give one each")
    return Example(where, _string(record, *QUERY), passages, labels, graded=True)


def _labelled(record: Mapping[str, Any], where: str) -> Example:
    """sentence-transformers' labelled pairs: sentence1 or query, sentence2 or passage, label or score. With both, the
    score is a teacher's."""
    label = _number(record, "label" if "label" in record else "score")
    teacher = [_number(record, "score")] if _has(record, "score") else None
    return Example(where, _string(record, *QUERY), [_string(record, *PASSAGE)], [label], teacher, graded=True)


QUERY = ("query", "anchor", "sentence1")
PASSAGE = ("passage", "sentence2")
LISTS = ("docs", "passages")


@dataclass(frozen=True)
class Form:
    """A form of rows.

    Attributes:
        columns: groups of names; a row has at least one of each.
        read: makes an example of a row.
        grouped: rows of one query together are one example.
    """

    columns: Sequence[Sequence[str]]
    read: Callable[[Mapping[str, Any], str], Example]
    grouped: bool = False

    def __str__(self) -> str:
        return ", ".join("/".join(names) for names in self.columns)


FORMS = (
    Form((("query",), ("pos",)), _flag),
    Form((QUERY, ("positive",)), _triplet),
    Form((QUERY, LISTS, ("labels",)), _listed),
    Form((QUERY, PASSAGE, ("label", "score")), _labelled, grouped=True),
)


def form_of(record: Mapping[str, Any]) -> Form:
    """The form of a row, by its columns.

    Raises:
        ValueError: it is of no known form, or of two.
    """
    found = [form for form in FORMS if all(any(name in record for name in names) for names in form.columns)]
    if len(found) != 1:
        known = "; ".join(map(str, FORMS))
        raise ValueError(f"the columns {', '.join(record)} are not those of one known form. Known are: {known}")
    return found[0]


def merge(examples: Sequence[Example]) -> Example:
    """One example of labelled pairs of one query."""
    first = examples[0]
    scores = [score for example in examples for score in example.teacher or ()]
    return Example(
        first.where,
        first.query,
        [passage for example in examples for passage in example.passages],
        [label for example in examples for label in example.labels],
        scores if len(scores) == len(examples) else None,
        graded=True,
    )


def _has(record: Mapping[str, Any], name: str) -> bool:
    return record.get(name) is not None


def _string(record: Mapping[str, Any], *names: str) -> str:
    name = _only(record, names)
    if not isinstance(record[name], str):
        raise ValueError(f'"{name}" is a {type(record[name]).__name__}; it must be a string')
    return record[name]


def _number(record: Mapping[str, Any], name: str) -> float:
    if isinstance(record[name], bool):
        return float(record[name])
    if not fits(record[name], float):
        raise ValueError(f'"{name}" is {record[name]!r}; it must be a finite number')
    return float(record[name])


def _strings(record: Mapping[str, Any], *names: str) -> list[str]:
    name = _only(record, names)
    if not isinstance(record[name], list | tuple) or not all(isinstance(text, str) for text in record[name]):
        raise ValueError(f'"{name}" must be a list of strings')
    return list(record[name])


def _numbers(record: Mapping[str, Any], *names: str) -> list[float]:
    name = _only(record, names)
    if not fits(record[name], Sequence[float]):
        raise ValueError(f'"{name}" must be a list of finite numbers')
    return list(map(float, record[name]))


def _only(record: Mapping[str, Any], names: Sequence[str]) -> str:
    found = [name for name in names if name in record]
    if len(found) != 1:
        raise ValueError(f"{' and '.join(found)} are given; keep one" if found else f'"{names[0]}" is missing')
    return found[0]
