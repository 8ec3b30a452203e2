"""Options made from the fields of a dataclass."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from flax_rerank.cli.options import add_options, given


def device(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


@dataclass(frozen=True, kw_only=True)
class Settings:
    max_length: int = field(default=512, metadata={"help": "tokens of a pair", "metavar": "N"})
    ratio: float | None = None
    prompt: str | None = None
    folder: Path = Path()
    normalize: bool | Literal["calibrated"] = False
    shuffle: bool = True
    show_progress_bar: bool | None = field(default=None, metadata={"flag": "--no-progress"})
    head: Literal["first", "last"] = "first"
    level: Literal[1, 2] = 1
    layers: int | Sequence[int] | None = None
    names: list[str] = field(default_factory=list, metadata={"choices": ("a", "b")})
    pair: tuple[float, ...] = ()
    devices: str | int | Sequence[str | int] | None = field(default=None, metadata={"parse": device})
    mesh: Any = field(default=None, metadata={"cli": False})


def parse(*words, only=None):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser.add_argument_group(), Settings, only)
    return given(parser.parse_args(words), Settings)


def test_only_what_is_given_is_there():
    assert parse() == {}
    assert parse("--max-length", "7") == {"max_length": 7}


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--ratio 0.5", "ratio", 0.5),
        ("--prompt Yes?", "prompt", "Yes?"),
        ("--folder a/b", "folder", Path("a/b")),
        ("--normalize", "normalize", True),
        ("--normalize-calibrated", "normalize", "calibrated"),
        ("--no-shuffle", "shuffle", False),
        ("--no-progress", "show_progress_bar", False),
        ("--head last", "head", "last"),
        ("--level 2", "level", 2),
        ("--layers 1 2", "layers", [1, 2]),
        ("--names a b", "names", ["a", "b"]),
        ("--pair 1 2.5", "pair", [1.0, 2.5]),
        ("--devices cpu 0", "devices", ["cpu", 0]),
    ],
)
def test_the_annotation_says_what_a_value_is(words, name, value):
    assert parse(*words.split()) == {name: value}


@pytest.mark.parametrize("words", ["--head middle", "--names c", "--level 3", "--max-length long"])
def test_other_values_are_refused(words):
    with pytest.raises(argparse.ArgumentError, match=words.split()[0]):
        parse(*words.split())


def test_fields_may_be_left_out():
    assert parse("--prompt", "x", only=["prompt"]) == {"prompt": "x"}
    for option, only in (("--ratio", ["prompt"]), ("--mesh", None)):
        with pytest.raises((argparse.ArgumentError, SystemExit)):
            parse(option, "1", only=only)


def test_the_help_is_that_of_the_field():
    parser = argparse.ArgumentParser()
    add_options(parser, Settings, ["max_length"])
    assert "--max-length N  tokens of a pair" in parser.format_help()


def test_a_type_that_is_not_read_from_a_string_is_named():
    @dataclass
    class Unclear:
        value: int | str = 0

    with pytest.raises(TypeError, match=r"value: int \| str cannot be read from a string"):
        add_options(argparse.ArgumentParser(), Unclear)
