"""What all inputs share: lines, JSON objects, their texts, and the digest of an input."""

import codecs
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flax_rerank.jobs import files


def fingerprint(settings: Sequence[str | int], digests: Sequence[str]) -> str:
    """The SHA-256, in hexadecimal, of what is read from the files and of their content. Names do not count."""
    return hashlib.sha256(json.dumps([settings, digests]).encode()).hexdigest()


def numbered_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file (.gz, .zst or neither) that are not blank, each with its number from 1.

    A UTF-8 byte order mark is skipped. Raises ValueError if there are none, or for UTF-16.
    """
    empty = True
    with files.open_input(path) as stream:
        for number, line in enumerate(stream, start=1):
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
    return record


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


def require_texts(query: str, passage: str) -> None:
    """Raise ValueError if a query or a passage is empty, or has a lone surrogate, which no tokenizer takes."""
    for role, text in (("query", query), ("passage", passage)):
        if not text or text.isspace():
            raise ValueError(f"the {role} is empty")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"the {role} holds a lone surrogate, {text[error.start]!a}") from error
