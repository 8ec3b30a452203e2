"""What a pair must have to be scored."""

from collections.abc import Mapping
from typing import Any


def pair_of(record: Mapping[str, Any], query_field: str, passage_field: str) -> tuple[str, str]:
    """The query and the passage of a record.

    Raises:
        ValueError: one is missing, null or not a string; or as `require_texts`.
    """
    for field in (query_field, passage_field):
        if field not in record:
            raise ValueError(f'"{field}" is missing')
        if record[field] is None:
            raise ValueError(f'"{field}" is null')
        if not isinstance(record[field], str):
            raise ValueError(f'"{field}" is not a string but {type(record[field]).__name__}')
    query, passage = record[query_field], record[passage_field]
    require_texts(query, passage)
    return query, passage


def require_texts(query: str, passage: str) -> None:
    """Raise ValueError if a query or a passage is empty, or has a lone surrogate, which no tokenizer takes."""
    for role, text in (("query", query), ("passage", passage)):
        if not text or text.isspace():
            raise ValueError(f"the {role} is empty")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"the {role} holds a lone surrogate, {text[error.start]!a}") from error
