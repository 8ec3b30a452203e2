"""What is put around a query and a passage: prompt formats as a table, and their token ids."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Literal

from flax_rerank.field_types import check_field_types
from flax_rerank.text.tokenizer import Tokenizer

Ids = tuple[int, ...]


@dataclass(frozen=True)
class PromptFormat:
    """How a query and a passage become one sequence: `prefix + query + middle + passage + suffix`.

    Prefix, middle and suffix are pieces of text, each of which is tokenised apart. `{prompt}` in a piece stands for
    the prompt.

    Attributes:
        prefix, middle, suffix: the pieces.
        prompt: the prompt, where the user gives none.
        special_tokens: "pair" puts the tokenizer's own special tokens around a pair; "bos" puts its BOS token first,
            and "bos_unless_pad" does so if there is one that is not the padding token.
        limit: what `max_length` bounds: the whole "sequence"; the "texts" with the middle; or, as FlagEmbedding has
            it, "flag": prefix, texts and middle, with as many tokens more as the suffix has.
        positive, negative: texts whose first tokens' logits make the score of a language model: positive - negative.
    """

    prefix: tuple[str, ...] = ()
    middle: tuple[str, ...] = ()
    suffix: tuple[str, ...] = ()
    prompt: str = ""
    special_tokens: Literal["pair", "bos", "bos_unless_pad", "none"] = "none"
    limit: Literal["sequence", "texts", "flag"] = "sequence"
    positive: str = "Yes"
    negative: str | None = None

    def __post_init__(self) -> None:
        check_field_types(self)
        for name in ("prefix", "middle", "suffix"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list, as JSON has it
            for piece in getattr(self, name):
                refuse_surrogates(f"prompt_format: {name}", piece)
        for name in ("prompt", "positive", "negative"):
            refuse_surrogates(f"prompt_format: {name}", getattr(self, name) or "")

    def template(
        self, tokenizer: Tokenizer, max_length: int, query_max_length: int, prompt: str | None = None
    ) -> "Template":
        """The token ids around query and passage, and how many tokens these two may have.

        Raises:
            ValueError: the tokenizer does not have the special tokens that this format takes.
        """
        prompt = self.prompt if prompt is None else prompt

        def ids(pieces: tuple[str, ...]) -> Ids:
            return tuple(
                token for piece in pieces for token in tokenizer.encode(piece.replace("{prompt}", prompt)).tolist()
            )

        before, between, after = special_tokens_of_a_pair(tokenizer) if self.special_tokens == "pair" else ((), (), ())
        prefix = self._bos(tokenizer) + before + ids(self.prefix)
        middle = between + ids(self.middle)
        suffix = ids(self.suffix) + after
        capacity = {
            "sequence": max_length - len(prefix) - len(middle) - len(suffix),
            "texts": max_length - len(middle),
            # FlagEmbedding lets query, separator and passage have max_length tokens and as many more as separator and
            # prompt have; then these two come on top.
            "flag": max_length + len(suffix) - len(middle) - len(prefix),
        }[self.limit]
        return Template(prefix, middle, suffix, capacity, query_max_length, max_length)

    def _bos(self, tokenizer: Tokenizer) -> Ids:
        if self.special_tokens not in ("bos", "bos_unless_pad"):
            return ()
        bos, unknown = tokenizer.bos_token_id, tokenizer.unknown_bos_token
        if unknown is not None:
            raise ValueError(f"the tokenizer's bos_token is {unknown!r}, which its vocabulary does not have")
        if bos is None and self.special_tokens == "bos":
            raise ValueError("the tokenizer has no BOS token, which this prompt format puts first")
        if bos is None or (self.special_tokens == "bos_unless_pad" and bos == tokenizer.pad_token_id):
            return ()
        return (bos,)


def refuse_surrogates(name: str, text: str) -> None:
    """Raise ValueError if a text has a lone surrogate, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds a lone surrogate, {text[error.start]!a}") from error


_FLAG = PromptFormat(
    middle=("\n",),
    suffix=("\n", "{prompt}"),
    prompt="Given a query A and a passage B, determine whether the passage contains an answer to the query by "
    "providing a prediction of either 'Yes' or 'No'.",
    special_tokens="bos_unless_pad",
    limit="flag",
)

PROMPT_FORMATS: Mapping[str, PromptFormat] = {
    "pair": PromptFormat(special_tokens="pair"),
    "flag-llm": _FLAG,
    "flag-layerwise": dataclasses.replace(_FLAG, special_tokens="bos"),
    "flag-lightweight": dataclasses.replace(
        _FLAG, special_tokens="bos", prompt="Predict whether passage B contains an answer to query A."
    ),
}


def find_prompt_format(name: str | PromptFormat) -> PromptFormat:
    """The entry of `PROMPT_FORMATS` called `name`, or a format as it is.

    Raises:
        ValueError: no such entry.
    """
    if isinstance(name, PromptFormat):
        return name
    if name not in PROMPT_FORMATS:
        raise ValueError(f"prompt_format {name!r} is not one of {', '.join(PROMPT_FORMATS)}, nor a PromptFormat")
    return PROMPT_FORMATS[name]


@dataclass(frozen=True)
class Instruction:
    """What is put around a text: `format` with the instruction and the text filled in.

    Raises:
        ValueError: a format with other fields than `{}`, `{0}` and `{1}`. (Python's would read attributes.)
    """

    text: str | None
    format: str

    def __post_init__(self) -> None:
        try:
            for _, name, spec, conversion in Formatter().parse(self.format):
                if name not in (None, "", "0", "1") or spec or conversion:
                    raise ValueError(f"a field {name!r}")
            self.format.format("", "")
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"the format {self.format!r} takes {{}} for the instruction and {{}} for the text, and nothing else"
            ) from error

    def apply(self, sentence: str) -> str:
        """The text with its instruction; a literal backslash-n in the format is a line break."""
        return sentence if self.text is None else self.format.replace("\\n", "\n").format(self.text, sentence)


@dataclass(frozen=True)
class Template:
    """Token ids around query and passage, and how many tokens these two may have together.

    Attributes:
        prefix, middle, suffix: token ids before, between and after the two.
        capacity: tokens of query and passage together; the passage is cut to fit.
        query_max_length, passage_max_length: tokens of each, cut before they are put together.
    """

    prefix: Ids
    middle: Ids
    suffix: Ids
    capacity: int
    query_max_length: int
    passage_max_length: int

    @property
    def special_tokens(self) -> int:
        """How many tokens are put around the two texts."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    @property
    def max_tokens(self) -> int:
        """The longest sequence that can come out."""
        return self.special_tokens + min(self.capacity, self.query_max_length + self.passage_max_length)


def special_tokens_of_a_pair(tokenizer: Tokenizer) -> tuple[Ids, Ids, Ids]:
    """The special tokens that a tokenizer puts before, between and after two texts.

    Raises:
        ValueError: it puts none.
    """
    pair = tokenizer.backend.encode("a", "b")
    where = pair.sequence_ids
    if 0 not in where or 1 not in where:
        raise ValueError("the tokenizer has no template for a pair of texts")
    query = [position for position, sequence in enumerate(where) if sequence == 0]
    passage = [position for position, sequence in enumerate(where) if sequence == 1]
    parts = pair.ids[: query[0]], pair.ids[query[-1] + 1 : passage[0]], pair.ids[passage[-1] + 1 :]
    if not parts[1]:
        raise ValueError("the tokenizer puts no separator between two texts: it is not that of a cross-encoder")
    return tuple(parts[0]), tuple(parts[1]), tuple(parts[2])
