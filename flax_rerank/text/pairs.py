"""Texts to token ids, as FlagEmbedding makes them.

Query and passage are tokenised apart, cut apart, and put into a template:
`prefix + query + middle + passage + suffix`. For an encoder that is `[CLS] query [SEP] passage [SEP]`,
for a decoder `<bos> query \\n passage \\n prompt`. Some prompt formats make one text of both, which takes the place of
the query.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flax_rerank.text.prompts import APART, Instruction, Template, fill
from flax_rerank.text.tokenizer import Tokenizer

Pair = tuple[str, str]


def as_pairs(sentence_pairs: Sequence[Sequence[str]] | Sequence[str]) -> list[Pair]:
    """One pair of strings, or a sequence of them, as a list of tuples.

    Raises:
        TypeError: something that is not two strings, named by its index.
    """
    if isinstance(sentence_pairs, str | bytes):
        raise TypeError(f"a pair is two strings, got the single string {_short(sentence_pairs)}")
    is_array = isinstance(sentence_pairs, np.ndarray) and sentence_pairs.ndim > 0
    if not is_array and not isinstance(sentence_pairs, Sequence | Iterator):
        raise TypeError(
            f"pairs are a list of (query, passage), got a {type(sentence_pairs).__name__}: make a list of two strings "
            "for each pair, in the order in which you want the scores"
        )
    pairs: list[Any] = list(sentence_pairs)
    if len(pairs) == 2 and all(isinstance(text, str) for text in pairs):
        return [(pairs[0], pairs[1])]
    if pairs and isinstance(pairs[0], str):
        raise TypeError(f"pair 0 is not two strings: {_short(pairs[0])}")
    checked = []
    for index, pair in enumerate(pairs):
        is_row = (
            pair.shape == (2,) if isinstance(pair, np.ndarray) else isinstance(pair, list | tuple) and len(pair) == 2
        )
        if not is_row or not isinstance(pair[0], str) or not isinstance(pair[1], str):
            raise TypeError(f"pair {index} is not two strings: {_short(pair)}")
        checked.append((pair[0], pair[1]))
    return checked


@dataclass(frozen=True)
class Prefixes:
    """What pairs begin with, where it is computed apart from them.

    Attributes:
        of_pair: int64 [pairs], the number of the prefix of each pair.
        first: int64 [prefixes], a pair that begins with each prefix.
        lengths: int32 [prefixes], tokens of each prefix; all of its pairs begin with them and have more.
    """

    of_pair: np.ndarray
    first: np.ndarray
    lengths: np.ndarray

    def block(self, pair: int, rows: int) -> int:
        """Which block has the prefix of a pair, where `rows` prefixes make a block."""
        return int(self.of_pair[pair]) // rows


@dataclass(frozen=True)
class TokenizedPairs:
    """Pairs as token ids. Texts that occur in many pairs are held once.

    Attributes:
        lengths: int32 [pairs], tokens with everything around them.
        passage_starts: int32 [pairs], where the passage begins.
        truncated: bool [pairs], whether query or passage lost tokens.
        faults: why a pair cannot be scored, by its index; such a pair has no tokens.
        queries: int64 [pairs], the number of the query of each pair, equal for equal ones; None where it is not known.
        prefixes: what pairs begin with, where it is computed apart from them.
    """

    template: Template
    tokenizer: Tokenizer
    texts: list[np.ndarray]
    query_index: np.ndarray
    passage_index: np.ndarray
    query_lengths: np.ndarray
    passage_lengths: np.ndarray
    truncated: np.ndarray
    faults: Mapping[int, str]
    queries: np.ndarray | None = None
    prefixes: Prefixes | None = None

    @property
    def lengths(self) -> np.ndarray:
        lengths = self.query_lengths + self.passage_lengths + np.int32(self.template.special_tokens)
        lengths[list(self.faults)] = 0
        return lengths

    @property
    def passage_starts(self) -> np.ndarray:
        return self.query_lengths + np.int32(len(self.template.prefix) + len(self.template.middle))

    def __len__(self) -> int:
        return len(self.query_index)

    def tokens_of(self, some: np.ndarray) -> int:
        """How many tokens pairs have together, each prefix counted once."""
        total = int(self.lengths[some].sum())
        if self.prefixes is None:
            return total
        of_each = self.prefixes.of_pair[some]
        return total - int(self.prefixes.lengths[of_each].sum()) + int(self.prefixes.lengths[np.unique(of_each)].sum())

    def distinct(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Equal pairs, of those that can be scored.

        Returns:
            int64 indices of all pairs that can be scored; of the first pair of each kind; and for each of the former
            its place among the latter.
        """
        sound = np.setdiff1d(np.arange(len(self)), list(self.faults))
        kinds = np.stack([self.query_index[sound], self.passage_index[sound]], axis=1)
        _, first, same = np.unique(kinds, axis=0, return_index=True, return_inverse=True)
        return sound, sound[first], same.reshape(-1)

    def ids(self, pair: int) -> np.ndarray:
        """The token ids of one pair, int32 [lengths[pair]]."""
        cut, template = self.tokenizer.cut, self.template
        query, length = self.texts[self.query_index[pair]], self.query_lengths[pair]
        if len(template.texts) > 1:
            query = cut(query, length)
        elif length < len(query):
            query = np.concatenate([query[: length - len(template.tail)], np.asarray(template.tail, np.int32)])
        passage = cut(self.texts[self.passage_index[pair]], self.passage_lengths[pair])
        prefix, middle, suffix = (
            np.asarray(ids, np.int32) for ids in (template.prefix, template.middle, template.suffix)
        )
        return np.concatenate([prefix, query, middle, passage, suffix])


def tokenize(
    pairs: Sequence[Pair],
    tokenizer: Tokenizer,
    template: Template,
    *,
    query_instruction: Instruction,
    passage_instruction: Instruction,
    skip_faulty: bool = False,
    show_progress_bar: bool = False,
) -> TokenizedPairs:
    """Tokenise pairs, each distinct query and passage once.

    A pair is at fault where a text cannot be encoded, its query leaves no room for its passage, an instruction is
    so long that nothing of the text is left, or it has no token at all.

    Args:
        skip_faulty: keep such pairs, without tokens, in `faults`.

    Raises:
        ValueError: the first pair at fault, named by its index, without `skip_faulty`.
    """
    faults = encoding_faults(pairs)
    if not skip_faulty:
        require_no_faults(faults)
    if faults:
        pairs = [("", "") if number in faults else pair for number, pair in enumerate(pairs)]
    index: dict[str, int] = {}
    query_index = np.empty(len(pairs), np.int64)
    passage_index = np.empty(len(pairs), np.int64)
    queries = {query: query_instruction.apply(query) for query, _ in pairs}
    numbers = {query: number for number, query in enumerate(queries)}
    passages = {passage: passage_instruction.apply(passage) for _, passage in pairs}

    def fill_in(text: str, query: str, passage: str) -> str:
        return fill(text, query, passage, template.instruction)

    for number, (query, passage) in enumerate(pairs):
        # Of one text, the query is all and the passage is empty.
        query, passage = queries[query], passages[passage]
        filled = [fill_in(text, query, passage) for text in template.texts]
        query_index[number] = index.setdefault(filled[0], len(index))
        passage_index[number] = index.setdefault(filled[1] if len(filled) > 1 else "", len(index))
    texts = tokenizer.encode_many(list(index), show_progress_bar=show_progress_bar)
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))

    full_query, full_passage = lengths[query_index], lengths[passage_index]
    query_lengths, passage_lengths = template.cut(full_query, full_passage)
    truncated = (query_lengths < full_query) | (passage_lengths < full_passage)
    if len(template.texts) > 1:

        def taken(text: str, instruction: Instruction) -> int:
            """Tokens that are not the text's own. (A text alone may have fewer: the end of a prefix may join it.)"""
            empty = instruction.apply("")
            return len(tokenizer.encode(fill_in(text, empty, empty))) if instruction.text or text not in APART else 0

        around = taken(template.texts[1], passage_instruction)
        lost = (passage_lengths < 0) | ((passage_lengths < full_passage) & (passage_lengths <= around))
        for pair in np.flatnonzero(lost).tolist():
            faults.setdefault(
                pair,
                f"no token of the passage is left. The query has {query_lengths[pair]} tokens (of "
                f"{full_query[pair]}), the passage's instruction {around}, both and the passage may have "
                f"{template.capacity}, the passage alone {template.passage_max_length}: shorten the query or the "
                "instructions, or raise max_length",
            )
        around = taken(template.texts[0], query_instruction)
        lost = (query_lengths < full_query) & (query_lengths <= around)
        for pair in np.flatnonzero(lost).tolist():
            faults.setdefault(
                pair,
                f"no token of the query is left. Its instruction has {around} tokens, query_max_length is "
                f"{template.query_max_length}, query and passage together may have {template.capacity}",
            )
    if template.special_tokens == 0:
        for pair in np.flatnonzero(query_lengths + passage_lengths == 0).tolist():
            faults.setdefault(pair, "it has no token: query and passage are empty")
    if not skip_faulty:
        require_no_faults(faults)
    truncated[list(faults)] = False
    return TokenizedPairs(
        template=template,
        tokenizer=tokenizer,
        texts=texts,
        query_index=query_index,
        passage_index=passage_index,
        query_lengths=query_lengths.astype(np.int32),
        passage_lengths=passage_lengths.astype(np.int32),
        truncated=truncated,
        faults=faults,
        queries=np.fromiter((numbers[query] for query, _ in pairs), np.int64, len(pairs)),
    )


def encoding_faults(pairs: Sequence[Pair]) -> dict[int, str]:
    """Why a pair cannot be encoded, by its index."""
    faults: dict[int, str] = {}
    for number, pair in enumerate(pairs):
        for role, text in zip(("query", "passage"), pair, strict=True):
            if text.isascii():
                continue
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                faults[number] = (
                    f"its {role} cannot be encoded: it holds a lone surrogate (U+{ord(text[error.start]):04X}) at "
                    f"character {error.start}"
                )
    return faults


def require_no_faults(faults: Mapping[int, str]) -> None:
    """Raise ValueError for the first pair at fault, if there is one."""
    if faults:
        first = min(faults)
        raise ValueError(f"pair {first}: {faults[first]}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
