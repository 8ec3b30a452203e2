"""Lists of passages of one query as prompts, each with as many of them as it may hold."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flax_rerank.text.prompts import PromptFormat, fill
from flax_rerank.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Limits:
    """What bounds a prompt.

    Attributes:
        query, passage: tokens of a text, which is cut.
        prompt: tokens of all its texts, the query counted twice.
        passages: how many it has.
    """

    query: int
    passage: int
    prompt: int
    passages: int


@dataclass(frozen=True)
class Prompts:
    """Prompts of pairs.

    Attributes:
        texts: one for each prompt.
        of_pair, place: int64 [pairs], the prompt of each pair, and which passage of it is the pair's.
        lists: for each list, its pairs.
        truncated: bool [pairs], whether query or passage were cut.
    """

    texts: list[str]
    of_pair: np.ndarray
    place: np.ndarray
    lists: list[list[int]]
    truncated: np.ndarray


def make_prompts(
    pairs: Sequence[tuple[str, str]], numbers: Sequence[int], form: PromptFormat, tokenizer: Tokenizer, limits: Limits
) -> Prompts:
    """Prompts of the pairs with these numbers; neighbours with one query are a list. The others have none (-1)."""
    texts: list[str] = []
    lists: list[list[int]] = []
    of_pair, place = np.full(len(pairs), -1), np.full(len(pairs), -1)
    truncated = np.zeros(len(pairs), bool)
    for members in _runs(pairs, numbers):
        query, query_tokens, query_is_cut = _cut(pairs[members[0]][0], limits.query, tokenizer)
        query = _without(form.markers, query)
        lists.append(members)
        block: list[str] = []
        capacity = limits.prompt - 2 * query_tokens
        for number in members:
            passage, tokens, is_cut = _cut(pairs[number][1], limits.passage, tokenizer)
            truncated[number] = is_cut or query_is_cut
            of_pair[number], place[number] = len(texts), len(block)
            block.append(_without(form.markers, passage))
            capacity -= tokens
            if len(block) == limits.passages or capacity <= limits.passage or number == members[-1]:
                texts.append(_prompt(form, query, block))
                block, capacity = [], limits.prompt - 2 * query_tokens
    return Prompts(texts, of_pair, place, lists, truncated)


def _runs(pairs: Sequence[tuple[str, str]], numbers: Sequence[int]) -> Iterator[list[int]]:
    """Neighbours with one query."""
    run: list[int] = []
    for number in numbers:
        if run and pairs[number][0] != pairs[run[0]][0]:
            yield run
            run = []
        run.append(number)
    if run:
        yield run


def _cut(text: str, length: int, tokenizer: Tokenizer) -> tuple[str, int, bool]:
    """A text of fewer tokens than `length` as it is, a longer one decoded from its first ones; their number; and
    whether any were lost."""
    ids = tokenizer.encode(text)
    if len(ids) < length:
        return text, len(ids), False
    return tokenizer.backend.decode(ids[:length].tolist(), skip_special_tokens=False), length, len(ids) > length


def _without(markers: Sequence[str], text: str) -> str:
    """A text without the tokens that mark passages and query, of which the model takes the vectors."""
    while any(marker in text for marker in markers):
        for marker in markers:
            text = text.replace(marker, "")
    return text


def _prompt(form: PromptFormat, query: str, passages: Sequence[str]) -> str:
    each = (
        fill(form.each.replace("{number}", str(number)), query, passage, "") for number, passage in enumerate(passages)
    )
    return fill(form.texts[0].replace("{count}", str(len(passages))), query, "\n".join(each), "")
