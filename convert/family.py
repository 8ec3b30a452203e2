"""What a model family says about itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flax import nnx

from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.rules import Rule
from flax_rerank.dtypes import DTypes
from flax_rerank.models.readout import Readout


@dataclass(frozen=True)
class Family:
    """One family of checkpoints.

    Attributes:
        model_classes: the `RerankerModelClass` value of each architecture name that is covered.
        module: makes the nnx module of a config, a readout and dtypes.
        architecture: reads config.json into config and readout; tokens that the tokenizer decides are left out.
        rules: the rule table for a config, a readout and the config.json that they were read from.
        ignored: regular expressions of tensor names that a model with this readout does not need.
        reads_tokens: the head has a row for each token, and the prompt format says which of them make the score.
        prompt_format: the entry of `PROMPT_FORMATS` for this family; None for that of the model class.
        truncation: how the library that these models are published for cuts long texts; see `PromptFormat`.
        prefix: with what the names of the body's tensors begin, where the body can be saved without a head.
        model_types: other spellings of `model_type`.
        spellings: with what names of tensors may begin instead, and with what they begin in the rules.
        is_of: whether a config.json with such an architecture or `model_type` is of this family, where several have
            them. The first family counts of which it is.
        in_transformers: transformers' class of the architecture's name runs these checkpoints as they are.
    """

    model_type: str
    model_classes: Mapping[str, str]
    module: Callable[[Any, Readout, DTypes], nnx.Module]
    architecture: Callable[[HFConfig], tuple[Any, Readout]]
    rules: Callable[[Any, Readout, Mapping[str, Any]], Sequence[Rule]]
    ignored: Callable[[Readout], Sequence[str]]
    reads_tokens: bool = False
    prompt_format: str | None = None
    truncation: Literal["only_second", "longest_first"] = "only_second"
    prefix: str | None = None
    model_types: tuple[str, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    is_of: Callable[[Mapping[str, Any]], bool] = lambda hf: True
    in_transformers: bool = True
