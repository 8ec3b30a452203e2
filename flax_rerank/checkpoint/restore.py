"""A Flax checkpoint to a module, on whatever devices."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Sharding

from flax_rerank.checkpoint.folder import PARAMS, require_known_format
from flax_rerank.checkpoint.params import StoredParams
from flax_rerank.convert.load import materialize, parameters_of
from flax_rerank.convert.rules import CheckpointError
from flax_rerank.dtypes import DTypes
from flax_rerank.models import Decoder, DecoderConfig, Encoder, EncoderConfig, Readout

ARCHITECTURES: Mapping[str, tuple[type[nnx.Module], type]] = {
    "Encoder": (Encoder, EncoderConfig),
    "Decoder": (Decoder, DecoderConfig),
}


def load_model(
    folder: Path,
    config: Mapping[str, Any],
    dtypes: DTypes,
    shardings: Callable[[nnx.Module], Mapping[str, Sharding]],
    **overrides: Any,
) -> nnx.Module:
    """Restore the module of a Flax checkpoint. Each device reads its part of each parameter.

    Args:
        folder: the checkpoint.
        config: its config.json.
        dtypes: of the module.
        shardings: where each parameter goes, by its dotted path, for an abstract module.
        overrides: fields of the model's config, in place of those that were saved.

    Raises:
        FileNotFoundError: the parameters are missing.
        CheckpointError: a format that this version does not know, or parameters missing, misshapen or damaged.
    """
    require_known_format(folder, config)
    module, config_class = ARCHITECTURES[config["architecture"]]
    readout = Readout(**config["readout"])
    if "tokens" in overrides:
        readout = dataclasses.replace(readout, tokens=overrides.pop("tokens"))
    model_config = config_class(**config["architecture_config"] | overrides)
    abstract = nnx.eval_shape(lambda: module(model_config, readout, dtypes))
    stored = StoredParams(folder / PARAMS)
    wanted = {path: param.get_value().shape for path, param in parameters_of(abstract).items()}
    shapes = stored.shapes()
    faults = [f"parameter {path} is missing in {PARAMS}/" for path in wanted if path not in shapes]
    faults += [f"parameter {path} in {PARAMS}/ is left over" for path in shapes if path not in wanted]
    faults += [
        f"parameter {path} in {PARAMS}/ has shape {list(shapes[path])}, config.json asks for {list(shape)}"
        for path, shape in wanted.items()
        if shapes.get(path, shape) != shape
    ]
    if faults:
        raise CheckpointError(folder, faults)
    return materialize(abstract, shardings(abstract), lambda path, index: stored.read(path, dtypes.stored, index))
