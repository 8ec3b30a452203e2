"""What the APIs have in common: fields of a request, errors, and what lies between request and answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Kind = Literal[
    "syntax", "invalid", "empty", "many", "long", "body", "model", "token", "full", "late", "starting", "backend"
]
STATUS: Mapping[Kind, int] = {
    **{"syntax": 400, "invalid": 400, "empty": 400, "many": 400, "long": 400, "body": 413, "model": 404},
    **{"token": 401, "full": 429, "late": 408, "starting": 503, "backend": 500},
}
JSON = dict[str, Any]


class RequestError(Exception):
    """A request that is not answered with scores.

    Attributes:
        kind: from which each API makes its status and body.
        message: what is wrong; without texts of the request.
        field: the field at fault, if one is.
        retry_after: seconds.
    """

    def __init__(self, kind: Kind, message: str, *, field: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.kind, self.message, self.field, self.retry_after = kind, message, field, retry_after


class Field(NamedTuple):
    """A field of a request.

    Attributes:
        words: what it must be.
        fits: whether a value is that.
        schema: the same as a JSON schema.
        required: it may be neither absent nor null.
        default: where it is absent or null.
    """

    words: str
    fits: Callable[[Any], bool]
    schema: JSON
    required: bool = False
    default: Any = None


@dataclass(frozen=True)
class Asked:
    """What a request asks for, whatever its API.

    Attributes:
        pairs: query and passage.
        model: the name that it gives, if it does.
        top_n: the best of them that are returned; None for all.
        normalize: give probabilities, not scores as the model gives them.
        documents: give the texts back.
        truncate: without it, a pair that is too long is an error.
    """

    pairs: list[tuple[str, str]]
    model: str | None = None
    top_n: int | None = None
    normalize: bool = True
    documents: bool = False
    truncate: bool = True


@dataclass(frozen=True)
class Answer:
    """What a request is answered with, whatever its API: for each pair its score, tokens and truncation."""

    model: str
    scores: Sequence[float]
    tokens: Sequence[int]
    truncated: Sequence[bool]

    def ranking(self, top_n: int | None) -> list[int]:
        """The pairs, best first, ties in their order."""
        return sorted(range(len(self.scores)), key=lambda index: -self.scores[index])[:top_n]


@dataclass(frozen=True)
class Api:
    """One API.

    Attributes:
        name: for metrics.
        summary: one line about it.
        fields: of the request; others are ignored.
        ask: what a request asks for, from its fields.
        answer: the body of the answer.
        refuse: status and body of an error; a body that is a string is plain text.
        example: a request.
        unknown_model: the message for a model that is not served.
    """

    name: str
    summary: str
    fields: Mapping[str, Field]
    ask: Callable[[JSON], Asked]
    answer: Callable[[Asked, Answer], Any]
    refuse: Callable[[RequestError], tuple[int, JSON | str]]
    example: JSON
    unknown_model: str = "The model `{}` does not exist."


def read_fields(body: Any, fields: Mapping[str, Field]) -> JSON:
    """The values of the fields.

    Raises:
        RequestError: the body is not an object, or a field is missing or of another type.
    """
    if not isinstance(body, dict):
        raise RequestError("invalid", "the body must be a JSON object")
    values = {}
    for name, field in fields.items():
        value = body.get(name)
        if value is None and field.required:
            raise RequestError("invalid", f"{name} is missing; it must be {field.words}", field=name)
        if value is not None and not field.fits(value):
            raise RequestError("invalid", f"{name} must be {field.words}", field=name)
        values[name] = field.default if value is None else value
    return values


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def is_document(value: Any) -> bool:
    return is_text(value) or (isinstance(value, dict) and is_text(value.get("text")))


_STRING: JSON = {"type": "string"}
_STRINGS: JSON = {"type": "array", "items": _STRING}
TEXT = Field("a string", is_text, _STRING, required=True)
TEXTS = Field("a list of strings", is_texts, _STRINGS, required=True)
DOCUMENTS = Field(
    'a list of strings or objects with "text"',
    lambda value: isinstance(value, list) and all(map(is_document, value)),
    {
        "type": "array",
        "items": {"anyOf": [_STRING, {"type": "object", "properties": {"text": _STRING}, "required": ["text"]}]},
    },
    required=True,
)
TEXT_OR_TEXTS = Field(
    "a string or a list of strings",
    lambda value: is_text(value) or is_texts(value),
    {"anyOf": [_STRING, _STRINGS]},
    required=True,
)
MODEL = Field("a string", is_text, _STRING)
TOP_N = Field(
    "an integer of at least 1", lambda value: _is_integer(value) and value >= 1, {"type": "integer", "minimum": 1}
)
TOP_N_OR_0 = Field(
    "an integer of at least 0", lambda value: _is_integer(value) and value >= 0, {"type": "integer", "minimum": 0}
)


def flag(default: bool) -> Field:
    """A field that is true or false."""
    schema = {"type": "boolean", "default": default}
    return Field("true or false", lambda value: isinstance(value, bool), schema, default=default)
