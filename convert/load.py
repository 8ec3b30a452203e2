"""A PyTorch checkpoint folder to a Flax module."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from flax_rerank.convert.bert import BERT
from flax_rerank.convert.cost_wise_gemma import COST_WISE_GEMMA
from flax_rerank.convert.family import Family
from flax_rerank.convert.gemma import GEMMA
from flax_rerank.convert.gemma2 import GEMMA2
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.llama import LLAMA
from flax_rerank.convert.minicpm import MINICPM
from flax_rerank.convert.mistral import MISTRAL
from flax_rerank.convert.peft import merge_adapter
from flax_rerank.convert.qwen2 import QWEN2
from flax_rerank.convert.qwen3 import QWEN3
from flax_rerank.convert.rules import CheckpointError, TensorSource, assign, fill
from flax_rerank.convert.torch_files import open_torch_files
from flax_rerank.convert.xlm_roberta import XLM_ROBERTA

FAMILIES: tuple[Family, ...] = (
    BERT,
    XLM_ROBERTA,
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    GEMMA,
    GEMMA2,
    MINICPM,
    COST_WISE_GEMMA,
)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no config.json in {folder}: is it the folder of a model?")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no JSON object")
    return config


def model_class_of(hf: Mapping[str, Any]) -> str | None:
    """The `RerankerModelClass` value that a config.json plainly names by its architecture, or None."""
    classes = {name: value for family in FAMILIES for name, value in family.model_classes.items()}
    return next((classes[name] for name in hf.get("architectures") or () if name in classes), None)


def refuse_embedding_model(hf: Mapping[str, Any]) -> None:
    """Raise ValueError for a config.json of a model without a head."""
    bodies = [name for name in hf.get("architectures") or () if name.endswith("Model")]
    if bodies:
        raise ValueError(f"{bodies[0]} is an embedding model: it has no head that could score a pair")


def family_of(hf: Mapping[str, Any]) -> Family:
    """The family that covers a config.json.

    Raises:
        ValueError: an embedding model, or a head with more than one label.
        NotImplementedError: an architecture that is not covered.
    """
    architectures = tuple(hf.get("architectures") or ())
    refuse_embedding_model(hf)
    labels = HFConfig(hf).labels
    if labels is not None and labels != 1 and any("SequenceClassification" in name for name in architectures):
        raise ValueError(f"a reranker has a head with one label; config.json has {labels}")
    for family in FAMILIES:
        if any(name in family.model_classes for name in architectures):
            return family
        if not architectures and hf.get("model_type") == family.model_type:
            return family
    asked = ", ".join(architectures) or hf.get("model_type")
    covered = sorted(name for family in FAMILIES for name in family.model_classes)
    raise NotImplementedError(f"architecture {asked} is not covered; covered: {', '.join(covered)}")


def load_model(
    folder: Path,
    dtype: np.dtype,
    place: Callable[[np.ndarray], jax.Array] = jax.device_put,
    *,
    adapter: Path | None = None,
    **overrides: Any,
) -> nnx.Module:
    """Build the Flax module of a PyTorch checkpoint.

    Args:
        folder: config.json and weights (safetensors, sharded or not, or pytorch_model.bin).
        dtype: of the parameters.
        place: puts one finished parameter onto devices.
        adapter: folder of a LoRA adapter to merge.
        overrides: fields of the model's config, in place of what config.json says.

    Raises:
        FileNotFoundError: config.json or the weights are missing.
        CheckpointError: tensors missing, left over or misshapen, files corrupt; all of them at once.
        ValueError, NotImplementedError: a config that is not covered, see `family_of`.
    """
    hf = read_config(folder)
    family = family_of(hf)
    config = dataclasses.replace(family.config(HFConfig(hf)), **overrides)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: family.module(config)))
    params = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    source: TensorSource = open_torch_files(folder)
    if adapter is not None:
        source = merge_adapter(source, adapter, family.ignored(config))
    shapes = {path: param.get_value().shape for path, param in params.items()}
    assignments, faults = assign(source.shapes(), shapes, family.rules(config, hf), family.ignored(config))
    if faults:
        raise CheckpointError(folder, faults)
    for path, param in params.items():
        param.set_value(place(fill(source, assignments[path], shapes[path], dtype)))
    return nnx.merge(graphdef, state)
