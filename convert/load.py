"""A PyTorch checkpoint folder to a Flax module."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from flax_rerank.convert import sentence_transformers
from flax_rerank.convert.bert import BERT
from flax_rerank.convert.cost_wise_gemma import COST_WISE_GEMMA
from flax_rerank.convert.deberta_v2 import DEBERTA_V2
from flax_rerank.convert.distilbert import DISTILBERT
from flax_rerank.convert.electra import ELECTRA
from flax_rerank.convert.family import Family
from flax_rerank.convert.gemma import GEMMA
from flax_rerank.convert.gemma2 import GEMMA2
from flax_rerank.convert.gte import GTE
from flax_rerank.convert.hf_config import TENSOR, fault_of
from flax_rerank.convert.jina_bert import JINA_BERT
from flax_rerank.convert.jina_v3 import JINA_V3
from flax_rerank.convert.jina_xlm_roberta import JINA_XLM_ROBERTA
from flax_rerank.convert.llama import LLAMA, LLAMA_BIDIRECTIONAL, LLAMA_CLASSIFIER
from flax_rerank.convert.minicpm import MINICPM
from flax_rerank.convert.mistral import MISTRAL, MISTRAL_CLASSIFIER
from flax_rerank.convert.modernbert import MODERNBERT
from flax_rerank.convert.peft import merge_adapter
from flax_rerank.convert.qwen2 import QWEN2, QWEN2_CLASSIFIER
from flax_rerank.convert.qwen3 import QWEN3, QWEN3_CLASSIFIER
from flax_rerank.convert.roberta import ROBERTA
from flax_rerank.convert.rules import Assignment, TensorSource, assign, fill
from flax_rerank.convert.t5 import T5
from flax_rerank.convert.torch_files import RenamedFiles, names_in_safetensors
from flax_rerank.convert.xlm_roberta import XLM_ROBERTA
from flax_rerank.json_files import read_object
from flax_rerank.models.readout import Readout
from flax_rerank.params import CheckpointError, Index, Shape, place, shapes_of

FAMILIES: tuple[Family, ...] = (
    *(JINA_BERT, BERT, JINA_XLM_ROBERTA, XLM_ROBERTA, ROBERTA, ELECTRA, DISTILBERT, DEBERTA_V2, GTE, MODERNBERT),
    *(LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, GEMMA2),
    *(MINICPM, COST_WISE_GEMMA),
    *(LLAMA_CLASSIFIER, LLAMA_BIDIRECTIONAL, MISTRAL_CLASSIFIER, QWEN2_CLASSIFIER, QWEN3_CLASSIFIER),
    *(JINA_V3, T5),
)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder, with the files of sentence-transformers beside it, if there are any, and
    with whether there is the tensor that tells the two families apart whose config.json may be the same.

    Raises:
        FileNotFoundError: there is no such file, or one that another one names.
        ValueError: a file is damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no config.json in {folder}: is it the folder of a model?")
    config = read_object(path)
    files = sentence_transformers.read_files(folder)
    if files:
        config[sentence_transformers.FILES] = files
    tensors = names_in_safetensors(folder) if {*XLM_ROBERTA.model_classes} & {*architectures_of(config)} else None
    if tensors is not None:
        config[TENSOR] = TENSOR in tensors
    return config


def architectures_of(hf: Mapping[str, Any]) -> tuple[str, ...]:
    """The architectures that a config.json names. ValueError if they are not a list of strings."""
    fault = fault_of("architectures", hf.get("architectures"))
    if fault is not None:
        raise ValueError(f"config.json: {fault}")
    return tuple(hf.get("architectures") or ())


def model_class_of(hf: Mapping[str, Any]) -> str | None:
    """The `RerankerModelClass` value that a config.json plainly names by its architecture, or None."""
    if sentence_transformers.has_head(hf):
        return "encoder-only-base"
    classes = {name: value for family in FAMILIES for name, value in family.model_classes.items()}
    return next((classes[name] for name in architectures_of(hf) if name in classes), None)


def refuse_embedding_model(hf: Mapping[str, Any]) -> None:
    """Raise ValueError for a config.json of a model without a head."""
    covered = {name for family in FAMILIES for name in family.model_classes}
    bodies = [name for name in architectures_of(hf) if name.endswith("Model") and name not in covered]
    if bodies and not sentence_transformers.has_head(hf):
        raise ValueError(f"{bodies[0]} is an embedding model: it has no head that could score a pair")


def family_of(hf: Mapping[str, Any]) -> Family:
    """The family that covers a config.json.

    Raises:
        ValueError: an embedding model, a head with more than one label, or fields of another type.
        NotImplementedError: an architecture that is not covered.
    """
    architectures = architectures_of(hf)
    refuse_embedding_model(hf)
    faults = list(filter(None, (fault_of(name, hf.get(name)) for name in ("model_type", "id2label", "num_labels"))))
    if faults:
        raise ValueError("config.json: " + "; ".join(faults))
    labels = len(hf.get("id2label") or ()) or hf.get("num_labels")
    if labels not in (None, 1) and any("SequenceClassification" in name for name in architectures):
        raise ValueError(f"a reranker has a head with one label; config.json has {labels} (id2label, num_labels)")
    has_modules = sentence_transformers.has_head(hf)
    for family in FAMILIES:
        named = any(name in family.model_classes for name in architectures)
        spelt = hf.get("model_type") in (family.model_type, *family.model_types)
        if (named or (spelt and (not architectures or has_modules))) and family.is_of(hf):
            if has_modules or "encoder-only-base" in family.model_classes.values():
                sentence_transformers.require_plain_texts(hf)  # of a decoder, the prompt format is made of the module
            return sentence_transformers.with_modules(family, hf) if has_modules else family
    asked = ", ".join(architectures) or hf.get("model_type")
    covered = sorted({name for family in FAMILIES for name in family.model_classes})
    raise NotImplementedError(f"architecture {asked} is not covered; covered: {', '.join(covered)}")


def architecture_with_head(hf: Mapping[str, Any], model_type: object, model_class: str) -> str | None:
    """The architecture of the rerankers of a kind, a `RerankerModelClass` value, with this model type and the body of
    config.json, or None. BertForSequenceClassification has that of BertModel and BertForMaskedLM."""
    names = [
        name
        for family in FAMILIES
        for name, value in family.model_classes.items()
        if family.model_type == model_type and value == model_class
    ]
    bodies = [re.sub(r"(For\w+|Model)$", "", name) for name in architectures_of(hf)]
    same = [name for name in names if re.sub(r"For\w+$", "", name) in bodies]
    return next(iter(same or names), None)


def truncation_of(hf: Mapping[str, Any]) -> Literal["only_second", "longest_first"]:
    """How the library that a checkpoint was published for cuts long texts."""
    return "longest_first" if sentence_transformers.is_published_for(hf) else family_of(hf).truncation


@dataclass(frozen=True)
class TorchCheckpoint:
    """A PyTorch checkpoint whose tensors fill the parameters of a module. No tensor is read before it is asked for.

    Attributes:
        source: the tensors, with the adapter merged into them, if any.
        params, assignments: for each parameter, by its dotted path, the shape and the tensors that fill it.
    """

    source: TensorSource
    params: dict[str, Shape]
    assignments: Mapping[str, Sequence[Assignment]]

    def shapes(self) -> dict[str, Shape]:
        """The shape of every parameter, by its dotted path."""
        return self.params

    def dtypes(self) -> dict[str, np.dtype]:
        """The dtype, of those that a model can have, that holds the tensors of each parameter as they are stored:
        bfloat16 where all are, else float32. (Of float64 it holds the first 24 bits.)"""
        stored, bfloat16 = self.source.dtypes(), np.dtype(ml_dtypes.bfloat16)
        return {
            path: bfloat16 if all(stored[item.tensor] == bfloat16 for item in items) else np.dtype(np.float32)
            for path, items in self.assignments.items()
        }

    def read(self, path: str, dtype: np.dtype, index: Index = ()) -> np.ndarray:
        """One parameter, or the part `index` of it."""
        return fill(self.source, self.assignments[path], self.params[path], dtype, index)

    def restore(self, dtype: np.dtype, shardings: Mapping[str, NamedSharding]) -> Iterator[tuple[str, jax.Array]]:
        """The parameters, cast to `dtype`, by their dotted paths. Each device reads its part of each tensor."""
        for path, shape in self.params.items():
            yield path, place(shape, shardings[path], partial(self.read, path, dtype))


def open_checkpoint(
    folder: Path, hf: Mapping[str, Any], config: Any, readout: Readout, module: nnx.Module, adapter: Path | None = None
) -> TorchCheckpoint:
    """Match the tensors in `folder`, with those of an adapter merged, with the parameters of an abstract module.

    Raises:
        FileNotFoundError: the weights are missing.
        CheckpointError: tensors missing, left over or misshapen, files corrupt; all of them at once.
    """
    family, params = family_of(hf), shapes_of(module)
    source = _with_names_of_rules(sentence_transformers.open_files(folder, hf), family)
    if adapter is not None:
        source = merge_adapter(source, adapter, family.ignored(readout))
    rules = family.rules(config, readout, hf)
    assignments, faults = assign(source.shapes(), params, rules, family.ignored(readout))
    if faults:
        raise CheckpointError(folder, faults)
    return TorchCheckpoint(source, params, assignments)


def _with_names_of_rules(source: TensorSource, family: Family) -> TensorSource:
    """The tensors of a source as the rules of a family name them."""
    names = {}
    for name in source.shapes():
        begins = [(theirs, ours) for theirs, ours in family.spellings if name.startswith(theirs)]
        theirs, ours = begins[0] if begins else ("", "")
        names[ours + name.removeprefix(theirs)] = name
    # If two have one name, both spellings are there: what is not of the rules is then left over.
    return RenamedFiles(source, names) if len(names) == len(source.shapes()) else source
