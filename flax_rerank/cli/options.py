"""Command-line options made from the fields of a dataclass."""

import argparse
import types
from collections.abc import Collection, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def add_options(group: argparse._ActionsContainer, cls: type, only: Collection[str] | None = None) -> None:
    """Add an option for each field of a dataclass; it is required if the field has no default.

    An option that is not given is left out of the namespace. It is named after the field, and the annotation says what
    values it takes. A bool takes no value; where its default is True, the option is `--no-...` and sets False. A text
    that is allowed beside a bool has an option of its own, as `--normalize-calibrated` beside `--normalize`. A field's
    metadata can have:
        help: the help text.
        metavar: the name of the value in the help text.
        choices: the allowed values, where the annotation is not a `Literal`.
        parse: a function that makes a value of a string, where the annotation is not enough.
        flag: another name for the option; one of a bool that starts with `--no-` sets False.
        cli: False for a field without an option.

    Args:
        group: a parser, or a group of its options.
        cls: the dataclass.
        only: the names of the fields; all by default.

    Raises:
        TypeError: the values of a field cannot be read from a string, and its metadata has no `parse`.
    """
    hints = get_type_hints(cls)
    for field in fields(cls):
        if field.metadata.get("cli", True) and (only is None or field.name in only):
            given = {name: field.metadata[name] for name in ("help", "metavar", "choices") if field.metadata.get(name)}
            values = _values(field, hints[field.name])
            if field.default is MISSING and field.default_factory is MISSING:
                values["required"] = True
            group.add_argument(_flag(field), dest=field.name, default=argparse.SUPPRESS, **values | given)
            for text in _beside_bool(hints[field.name]):
                group.add_argument(
                    f"{_flag(field)}-{text}",
                    dest=field.name,
                    action="store_const",
                    const=text,
                    default=argparse.SUPPRESS,
                    help=f"set {field.name} to {text}",
                )


def given(args: argparse.Namespace, cls: type) -> dict[str, Any]:
    """The fields of a dataclass whose options were given, with their values."""
    return {field.name: getattr(args, field.name) for field in fields(cls) if hasattr(args, field.name)}


def _flag(field: "Field[Any]") -> str:
    prefix = "--no-" if field.default is True else "--"
    return field.metadata.get("flag", prefix + field.name.replace("_", "-"))


def _values(field: "Field[Any]", hint: Any) -> dict[str, Any]:
    """What follows from a field's type: `action`, or `type`, `choices` and `nargs`."""
    union = get_origin(hint) in (Union, types.UnionType)
    kinds = {kind for kind in (get_args(hint) if union else (hint,)) if kind is not types.NoneType}
    sequences = {kind for kind in kinds if issubclass(_class(kind), Sequence) and kind is not str}
    kinds = kinds - sequences | {item for kind in sequences for item in get_args(kind) if item is not ...}
    values: dict[str, Any] = {"nargs": "+"} if sequences else {}
    if bool in kinds:
        kinds = {bool}
    if "parse" in field.metadata:
        return {**values, "type": field.metadata["parse"]}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is bool:
        negative = _flag(field).startswith("--no-") and not field.name.startswith("no_")
        return {"action": "store_false" if negative else "store_true"}
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return {**values, "choices": choices, "type": type(choices[0])}
    if not isinstance(kind, type):
        raise TypeError(f"{field.name}: {hint} cannot be read from a string; its metadata needs a parse function")
    return {**values, "type": kind}


def _beside_bool(hint: Any) -> tuple[str, ...]:
    """The texts that an annotation allows beside a bool."""
    kinds = get_args(hint)
    return tuple(text for kind in kinds if get_origin(kind) is Literal for text in get_args(kind) if bool in kinds)


def _class(kind: Any) -> type:
    """The class of an annotation, without its parameters; object if it is not a class, such as a `Literal`."""
    origin = get_origin(kind) or kind
    return origin if isinstance(origin, type) else object
