"""What sentence-transformers saves beside config.json: a list of modules with their own configs, prompts, activation.

`read_config` puts the contents of these files into the fields of config.json under `FILES`, so that they reach
whatever config.json reaches: a Flax checkpoint keeps them, and an export writes them again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from flax_rerank.convert.family import Family
from flax_rerank.convert.hf_config import FILES, TENSOR, HFConfig
from flax_rerank.convert.rules import Rule, TensorSource, layer_norm, linear
from flax_rerank.convert.torch_files import JoinedFiles, open_torch_files
from flax_rerank.json_files import read_json
from flax_rerank.models.heads import DenseHead
from flax_rerank.models.readout import Readout

MODULES, SETTINGS, BODY = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
TEMPLATES = "additional_chat_templates"
KINDS = ("Transformer", "Pooling", "Dense", "LayerNorm", "LogitScore")
VECTORS = ("Pooling", "Normalize")  # where they come last, the output is a vector
WITH_WEIGHTS = ("Dense", "LayerNorm")
NORM_EPSILON = 1e-5  # of LayerNorm, whose config does not say
ACTIVATIONS = {
    f"torch.nn.modules.{name}": ours
    for name, ours in {
        "activation.GELU": "gelu",
        "activation.ReLU": "relu",
        "activation.SiLU": "silu",
        "activation.Tanh": "tanh",
        "linear.Identity": "linear",
    }.items()
}
POSITIONS: dict[str, Literal["first", "mean", "last"]] = {"cls": "first", "mean": "mean", "lasttoken": "last"}
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
    last = str(entries[-1].get("type")).rpartition(".")[2] if entries else None
    if last in VECTORS:
        raise ValueError(f"{MODULES} ends with {last}: it is an embedding model, which gives vectors and no scores")
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
    prompt = prompts.get(default) if isinstance(prompts, dict) and isinstance(default, str) else None
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
    return {
        "config.json": {name: value for name, value in hf.items() if name not in (FILES, TENSOR)},
        **hf.get(FILES, {}),
    }


def require_plain_texts(hf: Mapping[str, Any]) -> None:
    """Raise ValueError for a Transformer module that does more than tokenise and run, or that has not the task that
    the modules after it need."""
    modules = modules_of(hf)
    if not modules:
        return
    if modules[0].kind != "Transformer":
        raise ValueError(f"{MODULES}: the first module is {modules[0].kind}; it must be a Transformer")
    fields = HFConfig(modules[0].fields, modules[0].file)
    for name in ("max_seq_length", "module_output_name", "modality_config", "unpad_inputs"):
        fields.take(name, None)
    fields.only("do_lower_case", False)
    fields.only("transformer_task", "feature-extraction" if has_head(hf) else "sequence-classification")
    fields.finish()


def has_head(hf: Mapping[str, Any]) -> bool:
    """Whether the head is made of modules, so that the Transformer is a body alone. (LogitScore has no weights.)"""
    return any(module.kind not in ("Transformer", "LogitScore") for module in modules_of(hf))


def with_modules(family: Family, hf: Mapping[str, Any]) -> Family:
    """A family whose head is that of the modules of a checkpoint: Pooling, Dense with its activation, LayerNorm where
    there is one, and Dense to one score. The tensors of its body are named without a prefix.

    Raises:
        ValueError: other modules, or fields of a module that are not supported, which are named.
    """
    _, *others = modules_of(hf)
    kinds = [module.kind for module in others]
    if family.prefix is None or kinds not in (
        ["Pooling", "Dense", "Dense"],
        ["Pooling", "Dense", "LayerNorm", "Dense"],
    ):
        raise ValueError(
            f"{MODULES}: a {family.model_type} body with {', '.join(kinds)} is not supported; only Pooling, Dense, "
            "LayerNorm or not, and Dense"
        )
    pooling, dense, *norms, score = others
    features, use_bias, activation = _dense(dense, scores=False)
    inner, label_bias, last = _dense(score, scores=True)
    if inner != features or last != "linear":
        raise ValueError(f"{score.file}: it takes in_features {features}, as {dense.path} gives, and no activation")
    for norm in norms:
        fields = HFConfig(norm.fields, norm.file)
        fields.only("dimension", features)
        fields.finish()
    head = DenseHead(activation, features, use_bias, NORM_EPSILON if norms else None, True, label_bias)
    position = _pooling(pooling)
    prefix = family.prefix

    def architecture(fields: HFConfig) -> tuple[Any, Readout]:
        config, readout = family.architecture(fields)
        return config, replace(readout, position=position, head="dense", dense=head)

    def rules(config: Any, readout: Readout, hf: Mapping[str, Any]) -> tuple[Rule, ...]:
        body = [rule for rule in family.rules(config, readout, hf) if not rule.flax.startswith("head")]
        return (
            *(replace(rule, torch=rule.torch.removeprefix(prefix)) for rule in body),
            *linear(f"{dense.path}/linear", "head.dense", use_bias=use_bias),
            *(rule for norm in norms for rule in layer_norm(f"{norm.path}/norm", "head.norm")),
            *linear(f"{score.path}/linear", "head.out_proj", use_bias=label_bias),
        )

    ignored = (r"embeddings\.position_ids", r"pooler\.dense\.(weight|bias)")
    return replace(
        family, architecture=architecture, rules=rules, ignored=lambda readout: ignored, in_transformers=False
    )


def _dense(module: Module, *, scores: bool) -> tuple[int, bool, str]:
    """The features that a Dense module takes (gives, unless it gives scores), its bias and its activation."""
    hf = HFConfig(module.fields, module.file)
    taken, given = hf.take("in_features"), hf.take("out_features")
    path = hf.take("activation_function", "torch.nn.modules.activation.Tanh")
    hf.require(path in ACTIVATIONS, f"activation_function {path!r} is not supported; only {', '.join(ACTIVATIONS)}")
    hf.require(not scores or given == 1, f"out_features is {given}; a reranker gives one score")
    hf.only("module_input_name", "sentence_embedding")
    hf.only("module_output_name", *(("scores",) if scores else ("sentence_embedding",)))
    hf.only("use_residual", False)
    use_bias = hf.take("bias", True)
    hf.finish()
    return taken if scores else given, use_bias, ACTIVATIONS[path]


def _pooling(module: Module) -> Literal["first", "mean", "last"]:
    """Which token a Pooling module gives, or the mean of all."""
    hf = HFConfig(module.fields, module.file)
    for name in ("embedding_dimension", "word_embedding_dimension", "include_prompt"):
        hf.take(name, None)
    # Earlier versions have a flag for each kind.
    flags = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken"}
    chosen = [kind for kind, flag in flags.items() if hf.take(f"pooling_mode_{flag}", False)]
    mode = hf.take("pooling_mode", chosen[0] if len(chosen) == 1 else None)
    if mode not in POSITIONS:
        hf.fault(f"pooling_mode is {mode!r}; only one of {', '.join(map(str, POSITIONS))} is supported")
    hf.finish()
    return POSITIONS[mode]
