"""What all inputs share: lines, JSON objects, their texts, and the limits of these."""

import codecs
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flax_rerank.jobs import files

MOST_LEVELS = 100  # of JSON; writers have limits of their own


@dataclass(frozen=True)
class Limits:
    """What a line and a text may have at the most. More is not kept in memory, or not given to the tokenizer, which
    takes about sixty times the memory of a text."""

    line_bytes: int = 8 << 20
    text_chars: int = 1_000_000


LIMITS = Limits()


def read_lines(stream: io.BufferedIOBase, limit: int) -> Iterator[bytes | ValueError]:
    """The lines of a stream with their ends; an error in the place of a line of more than `limit` bytes."""
    readline, most = stream.readline, limit + 1
    while line := readline(most):
        if len(line) < most or line.endswith(b"\n"):
            yield line
        else:
            while line and not line.endswith(b"\n"):
                line = readline(files.BLOCK)
            yield ValueError(f"the line has more than {limit:,} bytes (max_line_bytes)")


def numbered_lines(path: str, limits: Limits = LIMITS) -> Iterator[tuple[int, bytes]]:
    """The lines of a file (.gz, .zst or neither) that are not blank, each with its number from 1.

    A UTF-8 byte order mark is skipped. Raises ValueError if there are none, for UTF-16, and for a line that is too
    long.
    """
    empty = True
    with files.open_input(path) as stream:
        for number, line in enumerate(read_lines(stream, limits.line_bytes), start=1):
            if isinstance(line, ValueError):
                raise ValueError(f"{path}:{number}: {line}")
            if number == 1:
                refuse_utf16(path, line)
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.isspace():
                empty = False
                yield number, line
    if empty:
        raise ValueError(f"{path} holds no rows")


def refuse_utf16(path: str, start: bytes) -> None:
    """Raise ValueError if a file starts as UTF-16 does."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start[:2]:
        raise ValueError(f"{path} is UTF-16; convert it to UTF-8")


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object of one line. Raises ValueError if the line is not UTF-8, not JSON, or not an object."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"not a JSON object but {type(record).__name__}")
    if line.count(b"[") + line.count(b"{") > MOST_LEVELS and _levels(record) > MOST_LEVELS:
        raise ValueError(f"nested more than {MOST_LEVELS} levels deep")
    return record


def _levels(value: Any) -> int:
    """How deep lists and objects are nested."""
    levels, level = 0, [value]
    while level:
        levels += 1
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
    return levels


def string_in(record: Mapping[str, Any], field: str) -> str:
    """The string in a field. Raises ValueError if it is missing, null or of another type."""
    if field not in record:
        raise ValueError(f'"{field}" is missing')
    value = record[field]
    if value is None:
        raise ValueError(f'"{field}" is null')
    if not isinstance(value, str):
        raise ValueError(f'"{field}" is not a string but {type(value).__name__}')
    return value


def require_texts(query: str, passage: str, limits: Limits = LIMITS) -> None:
    """Raise ValueError if a query or a passage is empty or too long, or has a lone surrogate, which no tokenizer
    takes."""
    for role, text in (("query", query), ("passage", passage)):
        if len(text) > limits.text_chars:
            raise ValueError(
                f"the {role} has {len(text):,} characters, more than {limits.text_chars:,} (max_text_chars)"
            )
        if not text or text.isspace():
            raise ValueError(f"the {role} is empty")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"the {role} holds a lone surrogate, {text[error.start]!a}") from error
