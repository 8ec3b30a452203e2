"""Whether the values of a dataclass are of the types that its annotations say."""

import functools
import math
import types
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np


def check_field_types(instance: Any) -> None:
    """Check all fields of a dataclass, and make plain numbers and tuples of numpy's and of lists.

    Raises:
        TypeError: a value of another type; the message names the field, the value and what it must be.
        ValueError: a text that is not one of those that a `Literal` allows.
    """
    for name, hint in _hints(type(instance)).items():  # type: ignore[arg-type]
        value = getattr(instance, name)
        if not fits(value, hint):
            error = ValueError if get_origin(hint) is Literal and isinstance(value, str) else TypeError
            raise error(f"{name} is {value!r}; it must be {_in_words(hint)}")
        object.__setattr__(instance, name, _plain(value))


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that an annotation says. A bool is not a number here, and neither is NaN."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return any(fits(value, each) for each in arguments)
    if kind is Literal:
        return isinstance(value, str) and value in arguments
    if kind is int:
        return isinstance(value, int | np.integer) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float | np.floating) and not isinstance(value, bool) and math.isfinite(value)
    if kind in (Sequence, tuple):
        is_list = isinstance(value, list | tuple | range) or (isinstance(value, np.ndarray) and value.ndim > 0)
        return is_list and all(fits(each, arguments[0]) for each in value)
    return isinstance(value, kind)


def _plain(value: Any) -> Any:
    if isinstance(value, np.integer | np.floating):
        return value.item()
    if isinstance(value, list | range | tuple | np.ndarray):
        return tuple(map(_plain, value))
    return value


def _in_words(hint: Any) -> str:
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return " or ".join(map(_in_words, arguments))
    if kind is Literal:
        return " or ".join(map(repr, arguments))
    if kind in (Sequence, tuple):
        return f"a list of {_in_words(arguments[0])}"
    return "None" if kind is types.NoneType else kind.__name__


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}
