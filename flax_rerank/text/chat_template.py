"""A chat template that a checkpoint brings, turned into the texts of a prompt format.

The template is data: it is rendered a few times, when the model is opened, in jinja2's immutable sandbox and in a
process of its own, whose time and memory are bounded. Marks in place of query, passage and instruction show where
these go, and further renderings that nothing else happens to them. Pairs are scored without jinja2.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax_rerank.text.prompts import FIELD, fill

SECONDS = 5  # of the processor
TIMEOUT = 60
BYTES = 1 << 20  # of all renderings together
SCRIPT = Path(__file__).with_name("render_template.py")

MARKS = {name: f"\ue000{name}\ue001" for name in ("query", "passage", "instruction")}
# What a template might treat in another way: nothing, blank edges, and what jinja, HTML, JSON and Unicode care for.
TRIALS = (
    ("", "", "i"),
    (" \n a<b> & \"c\" 'd' {e} {{ f }} \\n ", "\t\u00e9e\u0301 \U0001f43c\r\n", "  {query} <i>\n"),
    ("0", "1 2 3 4", "Prefer recent sources"),
)


class ChatTemplateError(ValueError):
    """A chat template that cannot be rendered, or does more than put texts in their places."""


def texts_of_template(template: str, variables: Mapping[str, Any]) -> tuple[str, str | None]:
    """The text of a prompt format that a chat template makes of messages of the roles query and document, and the one
    with an instruction in a message of the role system in front; None where the template leaves that out.

    Args:
        template: in jinja's language.
        variables: what else it can use, such as `add_generation_prompt` and `bos_token`.

    Raises:
        ChatTemplateError: as its name says.
    """
    marks = MARKS["query"], MARKS["passage"], MARKS["instruction"]
    trials = [marks, *TRIALS]
    plain = render(template, variables, [_messages(query, passage) for query, passage, _ in trials])
    text = _with_fields(plain[0])
    _require_same(plain[1:], [fill(text, *trial) for trial in TRIALS])
    if MARKS["query"] not in plain[0] or MARKS["passage"] not in plain[0]:
        raise ChatTemplateError("the chat template leaves out the query or the document (roles: query, document)")
    instructed = render(template, variables, [_messages(*trial) for trial in trials])
    if instructed == plain:
        return text, None
    with_instruction = _with_fields(instructed[0])
    _require_same(instructed[1:], [fill(with_instruction, *trial) for trial in TRIALS])
    return text, with_instruction


def render(
    template: str, variables: Mapping[str, Any], conversations: Sequence[Sequence[Mapping[str, str]]]
) -> list[str]:
    """Render a template for each conversation, a list of messages with `role` and `content`.

    Raises:
        ChatTemplateError: it is not a template, raises an error, or takes too much time or memory.
    """
    request = {
        "template": template,
        "variables": dict(variables),
        "conversations": conversations,
        "seconds": SECONDS,
        "bytes": BYTES,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(SCRIPT)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ChatTemplateError(f"the chat template was not rendered within {TIMEOUT} seconds") from error
    if done.returncode < 0:
        raise ChatTemplateError(
            f"the chat template takes more than {SECONDS} seconds of the processor, or too much memory "
            f"(signal {-done.returncode})"
        )
    if done.returncode:
        raise ChatTemplateError(f"the chat template could not be rendered: {done.stderr.strip()[-500:]}")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise ChatTemplateError(f"the chat template cannot be rendered: {answer['error']}")
    return answer["texts"]


def _messages(query: str, passage: str, instruction: str = "") -> list[dict[str, str]]:
    """The messages that sentence-transformers makes of a pair."""
    roles = [("system", instruction)] if instruction else []
    roles += [("query", query), ("document", passage)]
    return [{"role": role, "content": content} for role, content in roles]


def _with_fields(rendering: str) -> str:
    """A rendering with a prompt format's fields in place of the marks."""
    found = FIELD.search(rendering)
    if found:
        raise ChatTemplateError(f"the chat template has the words {found[0]}, which stand for a text here")
    for name, mark in MARKS.items():
        rendering = rendering.replace(mark, f"{{{name}}}")
    return rendering


def _require_same(found: Sequence[str], wanted: Sequence[str]) -> None:
    if list(found) != list(wanted):
        raise ChatTemplateError(
            "the chat template changes the texts that it is given, or does other things with some of them; only "
            "templates that put the query, the document and the instruction in their places are supported"
        )
