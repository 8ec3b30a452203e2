"""A model in memory to a folder: a Flax checkpoint, or one of Hugging Face."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from flax_rerank import checkpoint
from flax_rerank.convert.torch_files import SafetensorsFiles
from flax_rerank.export import TorchTensors, export
from flax_rerank.params import ArrayParameters, Parameters, stacked_in
from flax_rerank.settings import Settings
from flax_rerank.spec import Spec


def save(
    path: Path,
    spec: Spec,
    settings: Settings,
    module: nnx.Module,
    params: Mapping[str, jax.Array],
    *,
    overwrite: bool = False,
) -> None:
    """Write the Flax checkpoint of a model in memory. The folder appears when it is complete, never before.

    Args:
        path: the folder to make.
        spec: of the model.
        settings: those that belong to the model are kept.
        module: the abstract module.
        params: its parameters, by their dotted paths.
        overwrite: replace a Flax checkpoint that is there.

    Raises:
        FileExistsError: the folder is there and may not be replaced.
        OSError: the disk is full, or the folder cannot be written to.
        ValueError: other processes have parts of the model.
    """
    for name, array in params.items():
        if not array.is_fully_addressable:
            raise ValueError(f"other processes have parts of {name}: convert the source instead of saving the model")
    arrays = ArrayParameters(params)
    dtype = max(arrays.dtypes().values(), key=lambda dtype: dtype.itemsize)
    contents = contents_of(spec, settings, arrays, dtype, module)
    checkpoint.write(path, contents, lambda: _source(spec), overwrite=overwrite)


def contents_of(
    spec: Spec, settings: Settings, params: Parameters, dtype: np.dtype, module: nnx.Module
) -> checkpoint.Contents:
    """What a Flax checkpoint of a spec holds. Arguments are those of `save`."""
    kept = {} if spec.kept is None else _tensors(spec.kept)
    return checkpoint.Contents(
        model_class=spec.model_class.value,
        params=params,
        dtype=dtype,
        stacked=stacked_in(module),
        tokenizer=spec.tokenizer,
        scoring=settings.kept(),
        source_config=spec.hf,
        head_tokens=spec.readout.tokens if spec.readout.head == "linear" else (),
        kept=kept,
    )


def save_pretrained(path: Path, spec: Spec, params: Mapping[str, jax.Array], *, overwrite: bool = False) -> None:
    """Write the Hugging Face folder of a model in memory; see `flax_rerank.export.export`."""
    export(path, TorchTensors(ArrayParameters(params), spec), spec, overwrite=overwrite)


def _tensors(file: Path) -> dict[str, SafetensorsFiles]:
    files = SafetensorsFiles(file.parent, [file.name])
    return dict.fromkeys(files.shapes(), files)


def _source(spec: Spec) -> Mapping[str, Any] | None:
    """What the manifest says about where the model came from."""
    if spec.folder is None:
        return None
    if spec.is_flax:
        return checkpoint.read_source(spec.folder)
    return checkpoint.describe_source(spec.name, spec.folder)
