"""Training data that is mined for: lines of a query with its positives."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flax_rerank.jobs.sources.records import numbered_lines, parse_object, require_texts, string_in

SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Example:
    """A line.

    Attributes:
        line: its number in its file, from 1.
        query: its query.
        pos: its positives, at least one.
        neg: its negatives.
        record: all its fields.
    """

    line: int
    query: str
    pos: list[str]
    neg: list[str]
    record: Mapping[str, Any]


def read_examples(path: str) -> list[Example]:
    """The lines of training data. Raises ValueError for one at fault, as "path:line: reason"."""
    examples = []
    for line, text in numbered_lines(path):
        try:
            record = parse_object(text)
            query = string_in(record, "query")
            example = Example(line, query, _texts(record, "pos"), _texts(record, "neg"), record)
            if not example.pos:
                raise ValueError('"pos" is empty')
            for passage in (*example.pos, *example.neg):
                require_texts(query, passage)
        except ValueError as error:
            raise ValueError(f"{path}:{line}: {error}") from error
        examples.append(example)
    return examples


def read_pool(path: str) -> Iterator[str]:
    """The passages of a candidate pool: each line's text, after its title if it has one.

    Raises ValueError for a line at fault, as "path:line: reason".
    """
    for line, text in numbered_lines(path):
        try:
            record = parse_object(text)
            title = string_in(record, "title") if record.get("title") is not None else ""
            passage = f"{title} {string_in(record, 'text')}".strip()
            require_texts("-", passage)
        except ValueError as error:
            raise ValueError(f"{path}:{line}: {error}") from error
        yield passage


def same(text: str) -> str:
    """What is equal for texts that differ in nothing but case and white space."""
    return SPACE.sub(" ", text.strip()).casefold()


def _texts(record: Mapping[str, Any], field: str) -> list[str]:
    """The strings in a list; [] where a field other than "pos" is missing or null."""
    value = record.get(field)
    if value is None and field != "pos":
        return []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f'"{field}" is not a list of strings')
    return value
