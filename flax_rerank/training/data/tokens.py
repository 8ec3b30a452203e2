"""Groups to token ids."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flax_rerank.settings import LLMSettings
from flax_rerank.spec import Spec
from flax_rerank.text.pairs import TokenizedPairs, tokenize
from flax_rerank.text.prompts import Instruction, Template
from flax_rerank.training.data.examples import DataError
from flax_rerank.training.data.groups import Group
from flax_rerank.training.data.settings import DataSettings


@dataclass(frozen=True)
class EncodedGroup:
    """A group as token ids.

    Attributes:
        group: the group.
        lengths, passage_starts: int32 [passages].
    """

    group: Group
    lengths: np.ndarray
    passage_starts: np.ndarray
    _tokenized: TokenizedPairs
    _first: int

    def ids(self, passage: int) -> np.ndarray:
        """The token ids of the query with one of its passages, int32 [lengths[passage]]."""
        return self._tokenized.ids(self._first + passage)


class Encoder:
    """Makes token ids of groups as FlagEmbedding's training does.

    Query and passage with all that is put around them have `query_max_len + passage_max_len` tokens. Before that, a
    query is cut to `query_max_len + passage_max_len // 4` and a passage to `passage_max_len + query_max_len // 2`.

    Args:
        spec: the model, with its prompt format.
        settings: of the data.

    Raises:
        ValueError: the settings have a prompt, and the prompt format has no place for it.
    """

    def __init__(self, spec: Spec, settings: DataSettings) -> None:
        self._spec, self._settings = spec, settings
        self._format = dataclasses.replace(spec.prompt_format, limit="sequence")
        pieces = (*self._format.prefix, *self._format.middle, *self._format.suffix)
        if settings.prompt is not None and not any("{prompt}" in piece for piece in pieces):
            raise ValueError("the prompt format has no place for a prompt: leave it out")
        self._templates: dict[str | None, Template] = {}

    def template(self, prompt: str | None = None) -> Template:
        """The token ids around query and passage, with the prompt of an example (None: the default).

        Raises:
            ValueError: a query could leave no room for its passage, or inputs could be longer than the model's
                positions.
        """
        if prompt not in self._templates:
            self._templates[prompt] = self._make_template(prompt)
        return self._templates[prompt]

    def encode(self, groups: Sequence[Group]) -> list[EncodedGroup]:
        """The token ids of each group, in order. Each distinct text is tokenised once.

        Raises:
            DataError: nothing is left of a text after its instruction.
        """
        alike: dict[tuple[str | None, ...], list[int]] = {}
        for number, group in enumerate(groups):
            example = group.example
            alike.setdefault((example.prompt, example.query_prompt, example.passage_prompt), []).append(number)
        encoded: dict[int, EncodedGroup] = {}
        for (prompt, query_prompt, passage_prompt), numbers in alike.items():
            tokenized = tokenize(
                [(groups[number].example.query, passage) for number in numbers for passage in groups[number].passages],
                self._spec.tokenizer,
                self.template(prompt),
                query_instruction=self._instruction("query", query_prompt),
                passage_instruction=self._instruction("passage", passage_prompt),
                skip_faulty=True,
            )
            owners = [number for number in numbers for _ in groups[number].passages]
            for row, fault in tokenized.faults.items():
                raise DataError(f"{groups[owners[row]].example.where}: {fault} (query_max_len + passage_max_len)")
            lengths, starts, first = tokenized.lengths, tokenized.passage_starts, 0
            for number in numbers:
                end = first + len(groups[number].passages)
                encoded[number] = EncodedGroup(groups[number], lengths[first:end], starts[first:end], tokenized, first)
                first = end
        return [encoded[number] for number in range(len(groups))]

    def _make_template(self, prompt: str | None) -> Template:
        settings, model = self._settings, self._spec.settings
        default = settings.prompt
        if default is None and isinstance(model, LLMSettings):
            default = model.prompt
        query, passage = settings.query_max_len, settings.passage_max_len
        template = dataclasses.replace(
            self._format.template(
                self._spec.tokenizer, query + passage, query + passage // 4, default if prompt is None else prompt
            ),
            passage_max_length=passage + query // 2,
        )
        lengths = f"query_max_len {query} and passage_max_len {passage}"
        if template.capacity <= template.query_max_length:
            raise ValueError(
                f"{lengths} leave {template.capacity} tokens for query and passage beside the "
                f"{template.special_tokens} around them, and a query may have {template.query_max_length}: raise "
                "passage_max_len"
            )
        positions = self._spec.config.max_length
        if positions is not None and template.max_tokens > positions:
            raise ValueError(
                f"{lengths} make inputs of up to {template.max_tokens} tokens; the model has {positions} positions "
                "(max_position_embeddings)"
            )
        return template

    def _instruction(self, role: str, text: str | None) -> Instruction:
        """What is put around each query or passage; its text may come from the example."""
        for settings in self._settings, self._spec.settings:
            text = getattr(settings, f"{role}_instruction_for_rerank") if text is None else text
        name = f"{role}_instruction_format"
        return Instruction(text, getattr(self._settings, name) or getattr(self._spec.settings, name))
