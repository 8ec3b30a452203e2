"""A reranker of a model that has no head yet: an encoder as pretrained, or a language model."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from flax_rerank import convert
from flax_rerank.convert import TorchCheckpoint
from flax_rerank.convert.rules import TensorSource, assign, assignments
from flax_rerank.convert.torch_files import RenamedFiles, open_torch_files
from flax_rerank.dtypes import DTypes
from flax_rerank.hub import local_folder, model_name
from flax_rerank.json_files import read_object
from flax_rerank.params import CheckpointError, load_arrays, shapes_of
from flax_rerank.settings import RerankerModelClass
from flax_rerank.spec import Spec, describe
from flax_rerank.text.tokenizer import Tokenizer
from flax_rerank.training.heads import new_head
from flax_rerank.training.lora import is_head

logger = logging.getLogger(__name__)

# The model type of a reranker with heads after many layers, where it is not that of the language model.
WITH_HEADS = {("gemma2", RerankerModelClass.DECODER_ONLY_LIGHTWEIGHT): "cost_wise_gemma"}


def open_raw(name: str, model_class: RerankerModelClass | None, heads: Mapping[str, Any], **settings: Any) -> Spec:
    """The spec of the reranker that is made of a model without a head.

    Args:
        name: a folder, or a name on the Hugging Face hub.
        model_class: the kind of reranker; by default an encoder.
        heads: fields of config.json that say where heads are, as `start_layer`; None for a default.
        settings: of the reranker.

    Raises:
        NotImplementedError: no reranker of this kind is made of such a model.
        And as `open_spec`.
    """
    kind = model_class or RerankerModelClass.ENCODER_ONLY_BASE
    folder = local_folder(model_name(name), settings.get("cache_dir"))
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no config.json in {folder}: is it the folder of a model?")
    # Without the modules of sentence-transformers: the model may be one for embeddings.
    hf = read_object(folder / "config.json")
    model_type = WITH_HEADS.get((str(hf.get("model_type")), kind), hf.get("model_type"))
    architecture = convert.architecture_with_head(hf, model_type, kind.value)
    if architecture is None:
        made = f"no reranker of the kind {kind.value} is made of a model of the type {model_type!r}"
        raise NotImplementedError(made)
    changed: dict[str, Any] = {"model_type": model_type, "architectures": [architecture]}
    if kind is RerankerModelClass.ENCODER_ONLY_BASE:
        changed |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    if kind is RerankerModelClass.DECODER_ONLY_LAYERWISE:
        changed |= {"head_type": "simple", "head_multi": True}
    if kind is RerankerModelClass.DECODER_ONLY_LIGHTWEIGHT:
        changed |= {"layer_wise": True}
    changed |= {field: value for field, value in heads.items() if value is not None}
    return describe(name, folder, {**hf, **changed}, Tokenizer.from_folder(folder), kind, **settings)


def load_raw(
    spec: Spec, module: nnx.Module, dtypes: DTypes, shardings: Mapping[str, NamedSharding], key: jax.Array
) -> tuple[dict[str, jax.Array], bool]:
    """The parameters of a spec from `open_raw`, and whether any of its head are new.

    A head that the checkpoint has, such as the pooler of a BERT, is read. New heads of a language model start as the
    row of the positive answer in its own head, those of an encoder at random.

    Raises:
        FileNotFoundError: there are no weights.
        CheckpointError: tensors of the body are missing or misshapen.
    """
    if spec.folder is None or spec.is_flax:
        raise ValueError(f"{spec.name} is not a PyTorch checkpoint without a head")
    source, shapes = open_torch_files(spec.folder), shapes_of(module)
    stored = source.shapes()
    rules = [rule for rule in spec.family.rules(spec.config, spec.readout, spec.hf) if rule.flax in shapes]
    # A body that was saved alone has no prefix: embeddings.norm.weight for bert.embeddings.norm.weight.
    names = {
        item.tensor: name
        for item in assignments(rules, shapes)
        for name in (item.tensor, item.tensor.partition(".")[2])
        if name in stored
    }
    new = {item.path for item in assignments(rules, shapes) if item.tensor not in names and is_head(item.path)}
    there = {path: shape for path, shape in shapes.items() if path not in new}
    renamed = RenamedFiles(source, names)
    rules = [rule for rule in rules if rule.flax in there]
    found, faults = assign(renamed.shapes(), there, rules)
    if faults:
        raise CheckpointError(spec.folder, faults)
    unused = sorted(stored.keys() - names.values())
    if unused:
        logger.info("%s: these tensors are not used: %s", spec.folder, ", ".join(unused))
    params = load_arrays(TorchCheckpoint(renamed, there, found), dtypes.stored, shardings)
    if new:
        made = new_head(module, key, row=_row_of_answer(spec, source))
        params |= {path: jax.device_put(made[path].astype(dtypes.stored), shardings[path]) for path in sorted(new)}
    return params, bool(new)


def _row_of_answer(spec: Spec, source: TensorSource) -> jax.Array | None:
    """The row of the positive answer in the head of a language model; None for an encoder."""
    if spec.model_class is RerankerModelClass.ENCODER_ONLY_BASE:
        return None
    for name in ("lm_head.weight", "model.embed_tokens.weight", "embed_tokens.weight"):
        if name in source.shapes():
            positive = spec.prompt_format.positive
            token = positive if isinstance(positive, int) else int(spec.tokenizer.encode(positive)[-1])
            return jax.numpy.asarray(source.read(name, (slice(token, token + 1),))[0].astype(np.float32))
    return None


def with_layer_heads(spec: Spec) -> Spec:
    """The spec of a lightweight reranker whose heads are trained, each for its own layer."""
    if spec.model_class is not RerankerModelClass.DECODER_ONLY_LIGHTWEIGHT:
        return spec
    return replace(spec, settings=replace(spec.settings, head_index="layer"))  # type: ignore[call-arg]
