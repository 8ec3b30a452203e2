"""What sentence-transformers saves beside config.json: a list of modules with their own configs, prompts, activation.

`read_config` puts the contents of these files into the fields of config.json under `FILES`, so that they reach
whatever config.json reaches: a Flax checkpoint keeps them, and an export writes them again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.rules import TensorSource
from flax_rerank.convert.torch_files import JoinedFiles, open_torch_files

FILES = "sentence_transformers_files"
MODULES, SETTINGS, BODY = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
TEMPLATES = "additional_chat_templates"
KINDS = ("Transformer", "Pooling", "Dense", "LayerNorm", "LogitScore")
WITH_WEIGHTS = ("Dense", "LayerNorm")
# Earlier versions wrote the activation into config.json.
MARKS = ("sentence_transformers", "sbert_ce_default_activation_function")


@dataclass(frozen=True)
class Module:
    """One entry of modules.json.

    Attributes:
        kind: the last part of its class's name.
        path: its folder in the checkpoint's; empty for the checkpoint's own.
        fields: of its config.json; of the Transformer, those of sentence_bert_config.json.
    """

    kind: str
    path: str
    fields: Mapping[str, Any]

    @property
    def file(self) -> str:
        """Where the fields are."""
        return f"{self.path}/config.json" if self.path else BODY


def read_json(path: Path) -> Any:
    """The value in a JSON file. ValueError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def read_files(folder: Path) -> dict[str, Any]:
    """The contents of the files of sentence-transformers in a folder, JSON and named chat templates, by their paths
    in it.

    Raises:
        FileNotFoundError: modules.json names a module whose config.json is missing.
        ValueError: a file is damaged, or a module is of a kind that is not understood.
    """
    found = {name: read_json(folder / name) for name in (MODULES, SETTINGS, BODY) if (folder / name).is_file()}
    for module in modules_of({FILES: found}):
        if module.path and not (folder / module.file).is_file():
            raise FileNotFoundError(f"{MODULES} has the module {module.path}, but {folder} has no {module.file}")
        if module.path:
            found[module.file] = read_json(folder / module.file)
    if found:
        templates = sorted((folder / TEMPLATES).glob("*.jinja"))
        found |= {f"{TEMPLATES}/{file.name}": file.read_text(encoding="utf-8") for file in templates}
    return found


def modules_of(hf: Mapping[str, Any]) -> tuple[Module, ...]:
    """The modules of a checkpoint in the order in which they run; none where it has no modules.json.

    Raises:
        ValueError: modules.json or the config of a module is not of the known form, or a module is of a kind that is
            not understood, which is named.
    """
    files = hf.get(FILES, {})
    entries = files.get(MODULES, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{MODULES} must be a list of objects")
    modules = []
    for entry in entries:
        kind, path = entry.get("type"), entry.get("path")
        if not isinstance(kind, str) or not isinstance(path, str):
            raise ValueError(f"{MODULES}: type and path must be strings in {entry!r}")
        library, _, name = kind.partition(".")
        name = name.rpartition(".")[2]
        if library != "sentence_transformers" or name not in KINDS:
            raise ValueError(f"{MODULES}: the module {kind} is not supported; only {', '.join(KINDS)}")
        if (path == "") != (name == "Transformer") or PurePosixPath(path).name != path:
            raise ValueError(f"{MODULES}: the module {kind} cannot be in the folder {path!r}")
        module = Module(name, path, {})
        fields = files.get(module.file, {})
        if not isinstance(fields, dict):
            raise ValueError(f"{module.file} must be an object")
        modules.append(Module(name, path, fields))
    return tuple(modules)


def is_published_for(hf: Mapping[str, Any]) -> bool:
    """Whether sentence-transformers wrote the checkpoint."""
    return bool(hf.get(FILES)) or any(hf.get(mark) for mark in MARKS)


def settings_of(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a reranker with which CrossEncoder's `predict` scores: its activation, and the prompt that it
    puts before each query.

    Raises:
        ValueError: an activation that is not supported, or fields of another type.
    """
    if not is_published_for(hf):
        return {}
    fields = hf.get(FILES, {}).get(SETTINGS, {})
    marked = hf.get("sentence_transformers") or {}
    if not isinstance(fields, dict) or not isinstance(marked, dict):
        raise ValueError(f"{SETTINGS} and the field sentence_transformers of config.json must be objects")
    # Where no file says, CrossEncoder takes the sigmoid.
    names = (fields.get("activation_fn"), marked.get("activation_fn"), hf.get("sbert_ce_default_activation_function"))
    activation = next(filter(None, names), "torch.nn.modules.activation.Sigmoid")
    kinds = {"torch.nn.modules.linear.Identity": False, "torch.nn.modules.activation.Sigmoid": True}
    if activation not in kinds:
        raise ValueError(f"the activation {activation!r} is not supported; only {', '.join(kinds)}")
    prompts, default = fields.get("prompts") or {}, fields.get("default_prompt_name")
    prompt = prompts.get(default) if isinstance(prompts, dict) else None
    settings: dict[str, Any] = {"normalize": True} if kinds[activation] else {}
    return settings | ({"query_instruction_for_rerank": prompt} if prompt else {})


def open_files(folder: Path, hf: Mapping[str, Any]) -> TensorSource:
    """The weights in a checkpoint's folder; those of a module are named by its folder, as `2_Dense/linear.weight`.

    Raises:
        FileNotFoundError, CheckpointError: as `open_torch_files`.
    """
    paths = [module.path for module in modules_of(hf) if module.kind in WITH_WEIGHTS]
    if not paths:
        return open_torch_files(folder)
    return JoinedFiles(
        {"": open_torch_files(folder)} | {f"{path}/": open_torch_files(folder / path) for path in paths}
    )


def config_files(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON files of a checkpoint and its named chat templates, by their paths in it, and what each holds."""
    return {"config.json": {name: value for name, value in hf.items() if name != FILES}, **hf.get(FILES, {})}


def require_plain_texts(module: Module) -> None:
    """Raise ValueError for a Transformer module that does more than tokenise and run."""
    hf = HFConfig(module.fields, module.file)
    for name in ("max_seq_length", "module_output_name", "modality_config", "unpad_inputs"):
        hf.take(name, None)
    hf.only("transformer_task", "feature-extraction", "sequence-classification")
    hf.finish()
