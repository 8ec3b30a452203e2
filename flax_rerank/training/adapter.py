"""A trained adapter in PEFT's files, which PEFT and `peft_path` load."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from flax_rerank.checkpoint import new_folder
from flax_rerank.convert.peft import CONFIG, PREFIX, WEIGHTS
from flax_rerank.convert.rules import Assignment, assignments
from flax_rerank.convert.torch_files import write_json, write_safetensors
from flax_rerank.dtypes import FLOAT32
from flax_rerank.params import shapes_of
from flax_rerank.spec import Spec
from flax_rerank.training.lora import DOWN, UP, LoRASettings, is_head, target_paths


def adapter_tensors(spec: Spec, lora: LoRASettings) -> tuple[list[Assignment], list[Assignment]]:
    """The tensors of the base that the factors belong to, and those of the head that are saved whole.

    Raises:
        ValueError: the model has one row of a tensor, which PEFT would adapt as a whole.
    """
    shapes = shapes_of(spec.module(FLOAT32))
    items = assignments(spec.family.rules(spec.config, spec.readout, spec.hf), shapes)
    targets = target_paths(shapes, lora)
    adapted = [item for item in items if item.path in targets]
    whole = [item for item in items if lora.heads and is_head(item.path)]
    for item in (*adapted, *whole):
        if item.partly_used:
            raise ValueError(
                f"PEFT's format has no place for one row of {item.tensor}: leave the head out of the adapter's "
                "targets, or export the merged model"
            )
    return adapted, whole


def save_adapter(
    path: Path, spec: Spec, lora: LoRASettings, trained: Mapping[str, jax.Array], *, overwrite: bool = False
) -> None:
    """Write adapter_config.json and adapter_model.safetensors, float32.

    Args:
        path: the folder.
        spec: of the base.
        lora: of the adapter.
        trained: factors and heads, by their dotted paths.
        overwrite: replace the folder.

    Raises:
        ValueError: as `adapter_tensors`.
        FileExistsError: the folder exists.
    """
    adapted, whole = adapter_tensors(spec, lora)
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    parts: dict[str, list[Assignment]] = {}
    for item in adapted:
        parts.setdefault(item.tensor.removesuffix(".weight"), []).append(item)
    for module, items in parts.items():
        # Of a tensor that packs several kernels, the rank is the sum of theirs.
        down = np.concatenate([np.asarray(trained[item.path + DOWN])[item.region].T for item in items])
        rows = items[0].shape[0]
        up = np.zeros((rows, len(down)), np.float32)
        for place, item in enumerate(items):
            factor = np.asarray(trained[item.path + UP])[item.region].T  # [out, rank]
            start = getattr(item.transform, "part", 0) * len(factor)
            up[start : start + len(factor), place * lora.rank : (place + 1) * lora.rank] = factor
        tensors |= {f"{PREFIX}{module}.lora_A.weight": down, f"{PREFIX}{module}.lora_B.weight": up}
        if len(down) != lora.rank:
            ranks[module] = len(down)
    for item in whole:
        value = item.transform.to_torch(np.asarray(trained[item.path])[item.region])
        tensors[PREFIX + item.tensor] = np.ascontiguousarray(value)
    modules = sorted({item.tensor.rpartition(".")[0] for item in adapted})
    heads = sorted({item.tensor.rpartition(".")[0] for item in whole})
    classifier = any("SequenceClassification" in name for name in spec.family.model_classes)
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if classifier else "CAUSAL_LM",
        "base_model_name_or_path": spec.name,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "rank_pattern": ranks,
        "alpha_pattern": {module: lora.alpha * rank / lora.rank for module, rank in ranks.items()},
        "lora_dropout": lora.dropout,
        "target_modules": modules,
        "modules_to_save": heads or None,
        "bias": "none",
        "inference_mode": True,
    }
    with new_folder(path, overwrite=overwrite, refuse=_refuse) as folder:
        write_json(folder / CONFIG, config)
        shapes = {name: (array.dtype, array.shape) for name, array in tensors.items()}
        write_safetensors(folder / WEIGHTS, shapes, iter(tensors.values()))


def _refuse(path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    foreign = (
        [entry.name for entry in path.iterdir() if entry.name not in (CONFIG, WEIGHTS)] if path.is_dir() else ["it"]
    )
    if foreign or not overwrite:
        raise FileExistsError(f"{path} exists and is not replaced: move it away first")
