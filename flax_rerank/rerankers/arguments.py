"""Methods that take the fields of a `Settings` class as their keyword arguments.

Type checkers and editors see these fields through the parameters of the dataclass, `help` and notebooks through
`__signature__`. So no argument is written a second time. Positional arguments come in FlagEmbedding's order.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, Concatenate, ParamSpec, TypeVar

from flax_rerank.settings import CallSettings, Settings

P = ParamSpec("P")
Self = TypeVar("Self")
First = TypeVar("First")
Result = TypeVar("Result")
Method = Callable[Concatenate[Self, First, ...], Result]


def takes_settings(
    settings: Callable[P, Settings],
) -> Callable[[Method[Self, First, Result]], Callable[Concatenate[Self, First, P], Result]]:
    """For a constructor: its keyword arguments are the fields of a `Settings` class."""
    names = [field.name for field in fields(settings)]  # type: ignore[arg-type]
    positional = [name for name in settings.positional if name in names]  # type: ignore[attr-defined]
    return _takes(settings, [*positional, *(name for name in names if name not in positional)], len(positional))


def takes_overrides(
    settings: Callable[P, CallSettings],
) -> Callable[[Method[Self, First, Result]], Callable[Concatenate[Self, First, P], Result]]:
    """For `compute_score` and `score`: their keyword arguments are the fields of a `CallSettings` class, and None
    stands for the constructor's value."""
    names = settings.call_names()  # type: ignore[attr-defined]
    return _takes(settings, names, sum(name in settings.call_positional for name in names), per_call=True)  # type: ignore[attr-defined]


def _takes(settings: Any, names: Sequence[str], positional: int, *, per_call: bool = False) -> Any:
    known = inspect.signature(settings).parameters

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        own = list(inspect.signature(method).parameters.values())[:2]
        parameters = [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD if place < positional else inspect.Parameter.KEYWORD_ONLY,
                default=None if per_call else known[name].default,
                annotation=(known[name].annotation | None if per_call else known[name].annotation)
                if name in known
                else Any,
            )
            for place, name in enumerate(names)
        ]
        signature = inspect.Signature([*own, *parameters])

        @functools.wraps(method)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{method.__qualname__}() {error}") from None
            return method(**bound.arguments)

        wrapper.__signature__ = signature  # type: ignore[attr-defined]
        return wrapper

    return decorate
