"""What a model family has to say about itself, and the list of families."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flax import nnx

from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.rules import Rule


@dataclass(frozen=True)
class Family:
    """One family of checkpoints.

    Attributes:
        model_type: as in config.json.
        model_classes: the `RerankerModelClass` value of each architecture name that is covered.
        module: the nnx module.
        config: reads config.json into the module's config.
        rules: the rule table for a config and the config.json that it was read from.
        ignored: regular expressions of tensor names that a model of this config has no use for.
    """

    model_type: str
    model_classes: Mapping[str, str]
    module: Callable[[Any], nnx.Module]
    config: Callable[[HFConfig], Any]
    rules: Callable[[Any, Mapping[str, Any]], Sequence[Rule]]
    ignored: Callable[[Any], Sequence[str]]
