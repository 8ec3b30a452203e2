"""LoRA adapters (Hu et al., 2021) in PEFT's files, merged into the tensors of their base checkpoint."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np

from flax_rerank.convert.hf_config import fault_of
from flax_rerank.convert.rules import TensorSource
from flax_rerank.convert.torch_files import SafetensorsFiles
from flax_rerank.json_files import read_object
from flax_rerank.params import CheckpointError, Index, Shape

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
HEAD = "score"  # of a classifier, which the base may not have
BASE_LAYER = ".base_layer"  # whole weights of an adapted embedding or head, which PEFT saves with the adapter
CHECKED = ("lora_alpha", "use_rslora", "alpha_pattern", "rank_pattern")
MOST_QUANTIFIERS, MOST_CHOICES = 3, 16  # in a pattern of names
ROWS = 1 << 14  # of an update that are multiplied at a time

# Fields of adapter_config.json. Every other field must be switched off: it may change what merging means.
SUPPORTED = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),
}
HARMLESS = {
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules", "modules_to_save"),
    *("exclude_modules", "layers_to_transform", "layers_pattern"),  # which modules: the tensors say so too
    *("lora_dropout", "inference_mode", "task_type", "base_model_name_or_path", "revision", "auto_mapping"),
    *("megatron_core", "eva_config", "peft_version", "qalora_group_size", "ensure_weight_tying", "lora_ga_config"),
    *("runtime_config",),
}


@dataclass(frozen=True)
class LowRank:
    """The update `scale * up @ down` of one matrix; `transposed` for embeddings."""

    down: str
    up: str
    scale: float
    transposed: bool


@dataclass(frozen=True)
class MergedTensors:
    """The tensors of a checkpoint with an adapter merged into them, one at a time, as they are read.

    `updates` are added to the base's tensors of these names; `replaced` gives the adapter's tensor to read instead, or
    in addition: the head of a classifier.
    """

    base: TensorSource
    adapter: TensorSource
    updates: Mapping[str, LowRank]
    replaced: Mapping[str, str]

    @property
    def files(self) -> tuple[Path, ...]:
        files = self.adapter.files
        return (*self.base.files, files[0].with_name(CONFIG), *files)

    def shapes(self) -> Mapping[str, Shape]:
        shapes = self.adapter.shapes()
        return {name: shapes[stored] for name, stored in self.replaced.items()} | dict(self.base.shapes())

    def dtypes(self) -> Mapping[str, np.dtype]:
        dtypes = self.adapter.dtypes()
        return {name: dtypes[stored] for name, stored in self.replaced.items()} | dict(self.base.dtypes())

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        source, stored = (self.adapter, self.replaced[name]) if name in self.replaced else (self.base, name)
        tensor = source.read(stored, index)
        if name not in self.updates:
            return tensor
        rows, columns = (*index, slice(None), slice(None))[:2]
        start, stop, _ = rows.indices(self.shapes()[name][0])
        return tensor.astype(np.float32) + self._update(self.updates[name], start, stop)[:, columns]

    def _update(self, update: LowRank, start: int, stop: int) -> np.ndarray:
        """The rows [start, stop) of an update. Whichever are asked for, the same blocks are multiplied: products of
        other shapes may be rounded in other ways."""
        down, up = (self.adapter.read(name).astype(np.float32) for name in (update.down, update.up))
        first = start // ROWS * ROWS
        blocks = []
        for row in range(first, stop, ROWS):
            block = slice(row, row + ROWS)
            product = (up @ down[:, block]).T if update.transposed else up[block] @ down
            blocks.append(product * np.float32(update.scale))
        return np.concatenate(blocks)[start - first : stop - first]


def with_head(hf: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """config.json of a base, as that of a classifier where the adapter in `folder` makes one of a language model.

    Raises:
        FileNotFoundError, CheckpointError: adapter_config.json is missing or damaged.
    """
    names = hf.get("architectures") or []
    if read_adapter_config(folder).get("task_type") != "SEQ_CLS" or not isinstance(names, list):
        return hf
    return {
        **hf,
        "architectures": [str(name).replace("ForCausalLM", "ForSequenceClassification") for name in names],
    }


def merge_adapter(base: TensorSource, folder: Path, unused: Sequence[str] = ()) -> MergedTensors:
    """A checkpoint's tensors with the LoRA adapter in `folder` merged into them.

    An adapter may not change tensors whose names match `unused`, regular expressions.

    Raises:
        FileNotFoundError: adapter_config.json or adapter_model.safetensors is missing.
        CheckpointError: an adapter of another kind, or one that does not fit the checkpoint; all reasons at once.
    """
    config = read_adapter_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"no {WEIGHTS} in {folder}: is it the folder of a PEFT adapter?")
    adapter = SafetensorsFiles(folder, [WEIGHTS])
    faults = [
        f"{CONFIG}: {name} = {short(value)} is not supported"
        for name, value in config.items()
        if name not in HARMLESS and value not in SUPPORTED.get(name, ()) and not _off(value)
    ]
    found = (fault_of(name, config.get(name)) for name in CHECKED)
    faults += [f"{CONFIG}: {fault}" for fault in found if fault is not None]
    patterns = config.get("alpha_pattern")
    if config.get("lora_alpha") is None:
        faults.append(f"{CONFIG}: lora_alpha is missing")
    faults += [
        f"{CONFIG}: the name {short(key)} in alpha_pattern is not supported: it may have letters, digits, _ . - | () "
        f"and at most {MOST_QUANTIFIERS} of * + ?"
        for key in (patterns if isinstance(patterns, dict) else ())
        if not _is_simple(key)
    ]
    if faults:
        raise CheckpointError(folder, faults)
    shapes, tensors = base.shapes(), adapter.shapes()
    updates: dict[str, LowRank] = {}
    replaced: dict[str, str] = {}
    for name, shape in tensors.items():
        module, kind = _parse(name)
        if kind.startswith("lora_"):
            side = "B" if "A" in kind else "A"
            if len(shape) != 2 or 0 in shape:
                faults.append(f"tensor {name} {list(shape)} is not a matrix")
                continue
            partner = name.removesuffix(kind) + re.sub("[AB]", side, kind)
            if partner not in tensors:
                faults.append(f"tensor {partner} is missing")
            elif len(tensors[partner]) != 2:
                continue  # a fault of its own
            elif side == "A" and shape[1] != tensors[partner][0]:
                faults.append(f"{name} has rank {shape[1]}, {partner} has {tensors[partner][0]}")
            elif side == "A":
                target, transposed = f"{module}.weight", "embedding" in kind
                updates[target] = LowRank(partner, name, _scale(config, module, shape[1]), transposed)
                merged = (shape[0], tensors[partner][1])
                if shapes.get(target) != (merged[::-1] if transposed else merged):
                    there = list(shapes[target]) if target in shapes else "missing"
                    faults.append(f"{name} and its partner make {list(merged)}, {target} is {there}")
        elif shapes.get(f"{module}.{kind}") == shape or (module == HEAD and f"{module}.{kind}" not in shapes):
            replaced[f"{module}.{kind}"] = name
        else:
            faults.append(f"tensor {name} {list(shape)} matches no tensor of the checkpoint")
    faults += [
        f"it changes {name}, which the model does not use"
        for name in {**updates, **replaced}
        if any(re.fullmatch(pattern, name) for pattern in unused)
    ]
    if faults:
        raise CheckpointError(folder, faults)
    return MergedTensors(base, adapter, updates, replaced)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json. FileNotFoundError if there is no such file, CheckpointError if it is damaged."""
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"no {CONFIG} in {folder}: is it the folder of a PEFT adapter?")
    try:
        return read_object(folder / CONFIG)
    except ValueError as error:
        raise CheckpointError(folder, [str(error)]) from error


def _is_simple(pattern: str) -> bool:
    """Whether a regular expression is sound and cannot take forever, as one of nested quantifiers does."""
    if (
        not re.fullmatch(r"(\\[.d]|\[[\w-]+\]|[\w.|()^$-]|(?<!\))[*+?])*", pattern)
        or pattern.count("|") > MOST_CHOICES
    ):
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return sum(map(pattern.count, "*+?")) <= MOST_QUANTIFIERS


def _off(value: object) -> bool:
    return value is None or value is False or value == {} or value == []


def _parse(name: str) -> tuple[str, str]:
    """The module that a tensor belongs to, and which of its tensors it is."""
    name = name.removeprefix(PREFIX)
    found = re.fullmatch(r"(.+?)\.(lora_[AB]\.weight|lora_embedding_[AB]|weight|bias)", name)
    module, kind = (found[1], found[2]) if found else (name, "")
    return module.removesuffix(BASE_LAYER), kind


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    patterns = config.get("alpha_pattern") or {}
    matching = (value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module))
    alpha = next(matching, config["lora_alpha"])
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)
