"""What the three LLM rerankers have in common: prompt, template, layers."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax_rerank.hub import local_folder
from flax_rerank.pairs import Template
from flax_rerank.rerankers.base import AbsReranker, Lengths
from flax_rerank.tokenizer import Tokenizer

SEPARATOR = "\n"


class DecoderReranker(AbsReranker):
    """A reranker whose pairs read `<bos> query \\n passage \\n prompt`, scored at the last token."""

    default_prompt: str

    def __init__(self, *args: Any, peft_path: str | None, prompt: str | None, **kwargs: Any) -> None:
        self.peft_path = peft_path
        self.prompt = prompt
        super().__init__(*args, **kwargs)

    def _adapter(self, cache_dir: str | None) -> Path | None:
        return None if self.peft_path is None else local_folder(str(self.peft_path), cache_dir)

    def _template(self, lengths: Lengths, prompt: str | None = None) -> Template:
        prompt = self.prompt if prompt is None else prompt
        separator = tuple(self.tokenizer.encode(SEPARATOR).tolist())
        question = tuple(self.tokenizer.encode(self.default_prompt if prompt is None else prompt).tolist())
        prefix = self._prefix()
        # The reference lets query, separator and passage have max_length tokens and as many more as separator and
        # prompt have; then these two come on top.
        template = Template(
            prefix=prefix,
            middle=separator,
            suffix=separator + question,
            capacity=lengths.max_length + len(question) - len(prefix),
            query_max_length=lengths.query_max_length,
            passage_max_length=lengths.max_length,
        )
        config = self.model.config
        dynamic = config.rope_scaling is not None and config.rope_scaling.kind == "dynamic"
        if template.max_tokens > config.max_position_embeddings and not dynamic:
            raise ValueError(
                f"max_length {lengths.max_length} makes inputs of up to {template.max_tokens} tokens with separators "
                f"and prompt, the model has {config.max_position_embeddings} positions"
            )
        return template

    def _prefix(self) -> tuple[int, ...]:
        if self.tokenizer.bos_token_id is None:
            raise ValueError(
                f"the tokenizer of {self.model_name_or_path} has no BOS token, which this class puts first"
            )
        return (self.tokenizer.bos_token_id,)

    def _cutoff_layers(self, cutoff_layers: int | Sequence[int] | None) -> tuple[int, ...]:
        """The layers to score after, as asked.

        Raises:
            ValueError: none, or one without a head.
        """
        readout = self.model.readout
        if cutoff_layers is None:
            return readout.layers[-1:]
        layers = (cutoff_layers,) if isinstance(cutoff_layers, int) else tuple(cutoff_layers)
        readout.at(layers)
        return layers


def token_of_yes(tokenizer: Tokenizer) -> int:
    """The token whose logit is the score: the first piece of "Yes", as in the reference."""
    pieces = tokenizer.encode("Yes")
    if len(pieces) == 0:
        raise ValueError("the tokenizer makes no token of 'Yes'")
    if len(pieces) > 1:
        warnings.warn(
            f"'Yes' is {len(pieces)} tokens to this tokenizer; the score is the logit of the first", stacklevel=2
        )
    return int(pieces[0])
