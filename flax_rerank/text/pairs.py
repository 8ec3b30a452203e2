"""Texts to token ids, as FlagEmbedding makes them.

Query and passage are tokenised apart, cut apart, and put into a template:
`prefix + query + middle + passage + suffix`. For an encoder that is `[CLS] query [SEP] passage [SEP]`,
for a decoder `<bos> query \\n passage \\n prompt`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flax_rerank.text.prompts import Instruction, Template
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
        is_row = isinstance(pair, list | tuple | np.ndarray) and len(pair) == 2
        if not is_row or not isinstance(pair[0], str) or not isinstance(pair[1], str):
            raise TypeError(f"pair {index} is not two strings: {_short(pair)}")
        checked.append((pair[0], pair[1]))
    return checked


@dataclass(frozen=True)
class TokenizedPairs:
    """Pairs as token ids. Texts that occur in many pairs are held once.

    Attributes:
        lengths: int32 [pairs], tokens with everything around them.
        passage_starts: int32 [pairs], where the passage begins.
        truncated: bool [pairs], whether query or passage lost tokens.
        faults: why a pair cannot be scored, by its index; such a pair has no tokens.
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
        cut = self.tokenizer.cut
        query = cut(self.texts[self.query_index[pair]], self.query_lengths[pair])
        passage = cut(self.texts[self.passage_index[pair]], self.passage_lengths[pair])
        template = self.template
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

    A pair is at fault where a text cannot be encoded, its query leaves no room for its passage, or an instruction is
    so long that nothing of the text is left.

    Args:
        skip_faulty: keep such pairs, without tokens, in `faults`.

    Raises:
        ValueError: the first pair at fault, named by its index, without `skip_faulty`.
    """
    faults = _encoding_faults(pairs)
    if not skip_faulty:
        _require_no_faults(faults)
    if faults:
        pairs = [("", "") if number in faults else pair for number, pair in enumerate(pairs)]
    index: dict[str, int] = {}
    query_index = np.empty(len(pairs), np.int64)
    passage_index = np.empty(len(pairs), np.int64)
    queries = {query: query_instruction.apply(query) for query, _ in pairs}
    passages = {passage: passage_instruction.apply(passage) for _, passage in pairs}
    for number, (query, passage) in enumerate(pairs):
        query_index[number] = index.setdefault(queries[query], len(index))
        passage_index[number] = index.setdefault(passages[passage], len(index))
    texts = tokenizer.encode_many(list(index), show_progress_bar=show_progress_bar)
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))

    full_query, full_passage = lengths[query_index], lengths[passage_index]
    query_lengths = np.minimum(full_query, template.query_max_length)
    room = template.capacity - query_lengths
    passage_lengths = np.minimum(np.minimum(full_passage, template.passage_max_length), room)
    truncated = (query_lengths < full_query) | (passage_lengths < full_passage)
    taken = len(tokenizer.encode(passage_instruction.apply(""))) if passage_instruction.text else 0
    lost = (room < 0) | ((passage_lengths < full_passage) & (passage_lengths <= taken))
    for pair in np.flatnonzero(lost).tolist():
        faults.setdefault(
            pair,
            f"no token of the passage is left. The query has {query_lengths[pair]} tokens (of {full_query[pair]}), "
            f"the passage's instruction {taken}, both and the passage may have {template.capacity}, the passage alone "
            f"{template.passage_max_length}: shorten the query or the instructions, or raise max_length",
        )
    taken = len(tokenizer.encode(query_instruction.apply(""))) if query_instruction.text else 0
    lost = (query_lengths < full_query) & (query_lengths <= taken)
    for pair in np.flatnonzero(lost).tolist():
        faults.setdefault(
            pair,
            f"no token of the query is left. Its instruction has {taken} tokens, query_max_length is "
            f"{template.query_max_length}",
        )
    if not skip_faulty:
        _require_no_faults(faults)
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
    )


def _encoding_faults(pairs: Sequence[Pair]) -> dict[int, str]:
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


def _require_no_faults(faults: Mapping[int, str]) -> None:
    if faults:
        first = min(faults)
        raise ValueError(f"pair {first}: {faults[first]}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
