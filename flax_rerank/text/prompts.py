"""What is put around a query and a passage: prompt formats as a table, and their token ids."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Literal, TypeAlias

import numpy as np

from flax_rerank.calibration.curve import sigmoid
from flax_rerank.field_types import check_field_types
from flax_rerank.text.tokenizer import Tokenizer

Ids = tuple[int, ...]
FIELD = re.compile(r"\{(query|passage|instruction)\}")
APART = ("{query}", "{passage}")
Truncation: TypeAlias = Literal["only_second", "longest_first", "right"]


@dataclass(frozen=True)
class PromptFormat:
    """How a query and a passage become one sequence: `prefix + query + middle + passage + suffix`.

    Prefix, middle and suffix are pieces of text, each of which is tokenised apart. `{prompt}` in a piece stands for
    the prompt.

    Attributes:
        prefix, middle, suffix: the pieces.
        prompt: the prompt, where the user gives none.
        texts: the text of the query and that of the passage, which are tokenised apart; or one text with both.
        instructed: the same with an instruction in it; empty where the format takes no instruction.
        instruction: the instruction, where the user gives none; empty for none.
        special_tokens: "pair" puts the tokenizer's own special tokens around a pair, and must find a separator; "own"
            puts those around a pair, or around one text, that there are; "bos" puts its BOS token first, and
            "bos_unless_pad" does so if there is one that is not the padding token.
        limit: what `max_length` bounds: the whole "sequence"; the "texts" with the middle; or, as FlagEmbedding has
            it, "flag": prefix, texts and middle, with as many tokens more as the suffix has.
        truncation: how texts that are too long are cut. "only_second" cuts the query to `query_max_length`, by default
            3/4 of `max_length`, then the passage (FlagEmbedding). "longest_first" cuts the longer of the two, and
            once they are equally long both (Hugging Face's `tokenizer(query, passage, truncation=True)`, which
            sentence-transformers calls). One text is cut on the "right".
        keep_tail: one text that is cut ends as it would if it were not, in the tokens that are the same for all texts.
        positive, negative: the tokens whose logits make the score of a language model, positive - negative: ids, or
            texts of which the first token counts.
        whole_answers: these texts must be one token each.
        each, markers: of a listwise format, what each passage becomes, with its `{number}` from 0; these, one a line,
            take the place of the passage in the text, where `{count}` is how many they are. The second marks the end
            of a passage and that of the query, tokens that are taken out of the texts.
        max_length: where neither the user nor the checkpoint gives one; None for that of the settings.
        normal_shift, normal_scale: `normalize` makes sigmoid((score - shift) * scale) of a score.

    Raises:
        TypeError, ValueError: a field of another type, texts without the query or the passage, or a way to cut them
            that does not go with one text or with two.
    """

    prefix: tuple[str, ...] = ()
    middle: tuple[str, ...] = ()
    suffix: tuple[str, ...] = ()
    prompt: str = ""
    texts: tuple[str, ...] = APART
    instructed: tuple[str, ...] = ()
    instruction: str = ""
    special_tokens: Literal["pair", "own", "bos", "bos_unless_pad", "none"] = "none"
    limit: Literal["sequence", "texts", "flag"] = "sequence"
    truncation: Truncation = "only_second"
    keep_tail: bool = False
    positive: str | int = "Yes"
    negative: str | int | None = None
    whole_answers: bool = False
    each: str = ""
    markers: tuple[str, ...] = ()
    max_length: int | None = None
    normal_shift: float = 0.0
    normal_scale: float = 1.0

    def __post_init__(self) -> None:
        check_field_types(self)
        fields = [FIELD.findall(text) for text in self.texts]
        apart = len(fields) == 2 and "query" in fields[0] and "passage" in fields[1]
        if not (apart and "passage" not in fields[0] and "query" not in fields[1]) and not (
            len(fields) == 1 and {*APART} <= {f"{{{name}}}" for name in fields[0]}
        ):
            raise ValueError(f"texts {list(self.texts)}: one text with {{query}} and {{passage}}, or a text for each")
        if self.is_one_text != (self.truncation == "right"):
            some = "one text is cut on the right" if self.is_one_text else "two texts are not cut as one"
            raise ValueError(f"truncation is {self.truncation!r}: {some}")
        if self.instructed and len(self.instructed) != len(self.texts):
            raise ValueError("instructed must have as many texts as texts")
        for name in ("texts", "instructed", "prefix", "middle", "suffix", "prompt", "positive", "negative"):
            value = getattr(self, name)
            for piece in value if isinstance(value, tuple) else (value,):
                if isinstance(piece, str):
                    refuse_surrogates(f"prompt_format: {name}", piece)

    @property
    def is_one_text(self) -> bool:
        """Whether query and passage are tokenised as one text."""
        return len(self.texts) == 1

    def normalized(self, scores: np.ndarray) -> np.ndarray:
        """The sigmoids of scores, float64."""
        return sigmoid((scores - self.normal_shift) * self.normal_scale)

    def template(
        self,
        tokenizer: Tokenizer,
        max_length: int,
        query_max_length: int,
        prompt: str | None = None,
        instruction: str | None = None,
    ) -> "Template":
        """The token ids around query and passage, and how many tokens these two may have.

        Raises:
            ValueError: the tokenizer does not have the special tokens that this format takes; a prompt or an
                instruction for a format that takes none; or nothing of the texts would be left.
        """
        if prompt is not None and not any("{prompt}" in piece for piece in (*self.prefix, *self.middle, *self.suffix)):
            raise ValueError("this prompt format has no prompt that could be replaced: it takes no prompt=")
        prompt = self.prompt if prompt is None else prompt
        instruction = self.instruction if instruction is None else instruction
        if instruction and not self.instructed:
            raise ValueError(f"this prompt format takes no instruction, and instruction is {instruction!r}")
        texts = self.instructed if instruction else self.texts

        def ids(pieces: tuple[str, ...]) -> Ids:
            return tuple(
                token for piece in pieces for token in tokenizer.encode(piece.replace("{prompt}", prompt)).tolist()
            )

        before, between, after = self._own(tokenizer)
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
        if not self.is_one_text:
            limits = query_max_length, max_length, self.truncation
            return Template(prefix, middle, suffix, capacity, *limits, texts, instruction)

        def encode(query: str, passage: str) -> list[int]:
            return tokenizer.encode(fill(texts[0], query, passage, instruction)).tolist()

        taken = len(encode("", ""))
        if taken >= capacity:
            raise ValueError(
                f"max_length {max_length} leaves no room for query and passage: what this prompt format puts around "
                f"them has {taken + max_length - capacity} tokens. Raise max_length"
            )
        tail = common_tail(encode("0", "0"), encode("1 2 3 4", "1 2 3 4")) if self.keep_tail else ()
        return Template(prefix, middle, suffix, capacity, capacity, 0, self.truncation, texts, instruction, tail)

    def _own(self, tokenizer: Tokenizer) -> tuple[Ids, Ids, Ids]:
        if self.special_tokens not in ("pair", "own"):
            return (), (), ()
        if self.is_one_text:
            return special_tokens_of_a_text(tokenizer)
        return special_tokens_of_a_pair(tokenizer, separated=self.special_tokens == "pair")

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

_QWEN_SYSTEM = "<|im_start|>system\n"
_QWEN_USER = "<|im_end|>\n<|im_start|>user\n"
_QWEN_ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
_QWEN_NO_THOUGHT = "<think>\n\n</think>\n\n"
_CTXL = (
    "Check whether a given document contains information helpful to answer the query.\n"
    "<Document> {passage}\n<Query> {query}"
)

PROMPT_FORMATS: Mapping[str, PromptFormat] = {
    "pair": PromptFormat(special_tokens="pair"),
    "texts": PromptFormat(special_tokens="own", truncation="longest_first"),
    "flag-llm": _FLAG,
    "flag-layerwise": dataclasses.replace(_FLAG, special_tokens="bos"),
    "flag-lightweight": dataclasses.replace(
        _FLAG, special_tokens="bos", prompt="Predict whether passage B contains an answer to query A."
    ),
    "qwen3-reranker": PromptFormat(
        prefix=(
            f"{_QWEN_SYSTEM}Judge whether the Document meets the requirements based on the Query and the Instruct "
            f'provided. Note that the answer can only be "yes" or "no".{_QWEN_USER}',
        ),
        texts=(
            "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
            "<Query>: {query}\n<Document>: {passage}",
        ),
        instructed=("<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {passage}",),
        truncation="right",
        suffix=(_QWEN_ASSISTANT + _QWEN_NO_THOUGHT,),
        positive="yes",
        negative="no",
        whole_answers=True,
        max_length=8192,
    ),
    "mxbai-v2": PromptFormat(
        prefix=(f"{_QWEN_SYSTEM}You are Qwen, created by Alibaba Cloud. You are a helpful assistant.{_QWEN_USER}",),
        texts=("query: {query}", "document: {passage}"),
        instructed=("instruction: {instruction}\nquery: {query}", "document: {passage}"),
        middle=("\n",),
        suffix=(
            "\n",
            "You are a search relevance expert who evaluates how well documents match search queries. For each "
            "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
            "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:",
            _QWEN_ASSISTANT,
        ),
        limit="texts",
        positive="1",
        negative="0",
        whole_answers=True,
        max_length=8192,
        normal_shift=6.0,
    ),
    "zerank": PromptFormat(
        texts=(f"{_QWEN_SYSTEM}{{query}}{_QWEN_USER}{{passage}}",),
        truncation="right",
        suffix=(_QWEN_ASSISTANT,),
        whole_answers=True,
        max_length=8192,
        normal_scale=0.2,
    ),
    "ctxl-v2": PromptFormat(
        texts=(f"{_CTXL} ??",),
        instructed=(f"{_CTXL} {{instruction}} ??",),
        truncation="right",
        special_tokens="own",
        positive=0,
        max_length=8192,
    ),
    "rankllama": PromptFormat(
        texts=("query: {query}", "document: {passage}"), special_tokens="own", truncation="longest_first"
    ),
    "jina-v3": PromptFormat(
        texts=(
            f"{_QWEN_SYSTEM}You are a search relevance expert who can determine a ranking of the passages based on "
            "how relevant they are to the query. If the query is a question, how relevant a passage is depends on how "
            "well it answers the question. If not, try to analyze the intent of the query and assess how well each "
            "passage satisfies the intent. If an instruction is provided, you should follow the instruction when "
            f"determining the ranking.{_QWEN_USER}I will provide you with {{count}} passages, each indicated by a "
            "numerical identifier. Rank the passages based on their relevance to query: {query}\n{passage}\n"
            f"<query>\n{{query}}<|rerank_token|>\n</query>{_QWEN_ASSISTANT}{_QWEN_NO_THOUGHT}",
        ),
        each='<passage id="{number}">\n{passage}<|embed_token|>\n</passage>',
        markers=("<|embed_token|>", "<|rerank_token|>"),
        truncation="right",
        max_length=131072,
    ),
    "monot5": PromptFormat(
        texts=("Query: {query} Document: {passage} Relevant:",),
        truncation="right",
        special_tokens="own",
        positive="true",
        negative="false",
        whole_answers=True,
        max_length=512,
    ),
    "nemotron": PromptFormat(
        texts=("question:{query} \n \n passage:{passage}",), special_tokens="own", truncation="right"
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


def fill(text: str, query: str, passage: str, instruction: str) -> str:
    """A text of a prompt format with these put in, as they are."""
    values = {"query": query, "passage": passage, "instruction": instruction}
    return FIELD.sub(lambda field: values[field[1]], text)


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
        capacity: tokens of query and passage together; they are cut to fit.
        query_max_length: tokens of the query, which is cut before the two are put together.
        passage_max_length: the same for the passage; "longest_first" does not look at it.
        truncation, texts, instruction: as of the prompt format. One text takes the place of the query.
        tail: the tokens in which one text ends if it is cut.
    """

    prefix: Ids
    middle: Ids
    suffix: Ids
    capacity: int
    query_max_length: int
    passage_max_length: int
    truncation: Truncation = "only_second"
    texts: tuple[str, ...] = APART
    instruction: str = ""
    tail: Ids = ()

    @property
    def special_tokens(self) -> int:
        """How many tokens are put around the two texts."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    @property
    def max_tokens(self) -> int:
        """The longest sequence that can come out."""
        return self.special_tokens + min(self.capacity, self.query_max_length + self.passage_max_length)

    def cut(self, query: np.ndarray, passage: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many tokens are left of queries and passages that have so many, int64 [pairs] each. Below 0 where a
        query alone is too long."""
        query = np.minimum(query, self.query_max_length)
        if self.truncation != "longest_first":
            return query, np.minimum(np.minimum(passage, self.passage_max_length), self.capacity - query)
        # Each has half of the room, and what the other leaves of its half; of an odd token, the longer one has it.
        half = max(self.capacity, 0) // 2
        of_query = np.where(query > passage, max(self.capacity, 0) - half, half)
        of_passage = self.capacity - of_query
        left_query = np.minimum(query, np.maximum(self.capacity - passage, of_query))
        left_passage = np.minimum(passage, np.maximum(self.capacity - query, of_passage))
        return left_query, left_passage


def special_tokens_of_a_text(tokenizer: Tokenizer) -> tuple[Ids, Ids, Ids]:
    """The special tokens that a tokenizer puts before one text, none, and those after it."""
    text = tokenizer.backend.encode("a")
    where = [position for position, sequence in enumerate(text.sequence_ids) if sequence == 0]
    return tuple(text.ids[: where[0]]), (), tuple(text.ids[where[-1] + 1 :])


def special_tokens_of_a_pair(tokenizer: Tokenizer, *, separated: bool = True) -> tuple[Ids, Ids, Ids]:
    """The special tokens that a tokenizer puts before, between and after two texts.

    Raises:
        ValueError: it puts none between them, and they are to be `separated`.
    """
    pair = tokenizer.backend.encode("a", "b")
    where = pair.sequence_ids
    if 0 not in where or 1 not in where:
        raise ValueError("the tokenizer has no template for a pair of texts")
    query = [position for position, sequence in enumerate(where) if sequence == 0]
    passage = [position for position, sequence in enumerate(where) if sequence == 1]
    parts = pair.ids[: query[0]], pair.ids[query[-1] + 1 : passage[0]], pair.ids[passage[-1] + 1 :]
    if separated and not parts[1]:
        raise ValueError("the tokenizer puts no separator between two texts: it is not that of a cross-encoder")
    return tuple(parts[0]), tuple(parts[1]), tuple(parts[2])


def common_tail(left: Sequence[int], right: Sequence[int]) -> Ids:
    """The token ids in which both end."""
    count = 0
    while count < min(len(left), len(right)) and left[-1 - count] == right[-1 - count]:
        count += 1
    return tuple(left[len(left) - count :])
