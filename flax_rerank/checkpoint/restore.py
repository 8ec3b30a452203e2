"""A Flax checkpoint to a module, on whatever devices."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from flax_rerank.checkpoint.folder import PARAMS, require_known_format
from flax_rerank.checkpoint.params import StoredParams
from flax_rerank.models import Decoder, DecoderConfig, Encoder, EncoderConfig
from flax_rerank.params import CheckpointError, shape_faults, shapes_of, with_parameters

ARCHITECTURES: Mapping[str, tuple[type[nnx.Module], type]] = {
    "Encoder": (Encoder, EncoderConfig),
    "Decoder": (Decoder, DecoderConfig),
}


def abstract_model(folder: Path, config: Mapping[str, Any], **overrides: Any) -> nnx.Module:
    """The module of a Flax checkpoint, without its parameters.

    Args:
        folder: the checkpoint.
        config: its config.json.
        overrides: fields of the model's config, in place of those that were saved.

    Raises:
        CheckpointError: config.json does not describe a model.
    """
    try:
        module, config_class = ARCHITECTURES[config["architecture"]]
        model_config = config_class(**config["architecture_config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(folder, [f"config.json does not describe a model ({error!r})"]) from error
    model_config = dataclasses.replace(model_config, **overrides)
    return nnx.eval_shape(lambda: module(model_config))


def load_model(
    folder: Path,
    config: Mapping[str, Any],
    dtype: np.dtype,
    shardings: Callable[[nnx.Module], Mapping[str, NamedSharding]],
    **overrides: Any,
) -> nnx.Module:
    """Restore the module of a Flax checkpoint. Each device reads its part of each parameter.

    Args:
        folder, config, overrides: as for `abstract_model`.
        dtype: of the parameters.
        shardings: where each parameter goes, by its dotted path, for an abstract module.

    Raises:
        FileNotFoundError: the parameters are missing.
        CheckpointError: a format that this version does not know, or parameters missing, misshapen or damaged.
    """
    require_known_format(folder, config)
    module = abstract_model(folder, config, **overrides)
    stored = StoredParams(folder / PARAMS)
    faults = shape_faults(stored.shapes(), shapes_of(module), "parameter")
    if faults:
        raise CheckpointError(folder, faults)
    return with_parameters(module, stored.restore(dtype, shardings(module)))
