"""What a folder is, and whether it would load; no weight is read and nothing is compiled."""

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flax import nnx

from flax_rerank import auto, checkpoint, convert
from flax_rerank.auto import RERANKER_CLASS_MAPPING
from flax_rerank.checkpoint import MANIFEST
from flax_rerank.convert import peft
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.rules import TensorSource
from flax_rerank.dtypes import FLOAT32
from flax_rerank.models import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from flax_rerank.models.readout import Readout
from flax_rerank.params import CheckpointError
from flax_rerank.quantization import is_scale
from flax_rerank.rerankers.call import resolve
from flax_rerank.settings import RerankerModelClass
from flax_rerank.spec import read_flax_config
from flax_rerank.text.tokenizer import Tokenizer

FIELDS = {  # facts that are fields of the model's config
    "layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "attention_heads": "num_attention_heads",
    "key_value_heads": "num_key_value_heads",
    "vocabulary": "vocab_size",
}


@dataclass
class Inspection:
    """What was found in a folder: `facts` by name, in the order to show them, and all `reasons` why it would not load
    with the defaults of its class.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    @property
    def loads(self) -> bool:
        return not self.reasons

    def add(self, *reasons: str) -> None:
        """Add reasons, those that are not there yet."""
        self.reasons += [reason for reason in reasons if reason not in self.reasons]

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """An error while `what` is read becomes a reason."""
        try:
            yield
        except CheckpointError as error:
            self.add(*error.faults)
        except (ValueError, OSError, NotImplementedError, ImportError) as error:
            self.add(str(error))
        except (TypeError, LookupError, AttributeError, ArithmeticError) as error:
            self.reasons.append(f"{what} holds something unexpected: {error!r}")


def inspect_folder(path: Path, *, check: bool = False) -> Inspection:
    """Look at the folder of a PyTorch or Flax checkpoint, or of an adapter.

    With `check`, the files of a Flax checkpoint are compared with the hashes of its manifest, which reads them all.

    Raises:
        FileNotFoundError: `path` is not a folder.
        ValueError: `check` for a folder that is not a Flax checkpoint.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder; a model is a folder with config.json, tokenizer and weights")
    found = Inspection({"path": str(path)})
    is_flax = False
    if (path / peft.CONFIG).is_file() and not (path / "config.json").is_file():
        with found.noting(peft.CONFIG):
            _inspect_adapter(path, found)
    else:
        with found.noting("config.json"):
            config = convert.read_config(path)
            is_flax = checkpoint.is_flax_config(config)
            _inspect_checkpoint(path, config, is_flax, found)
    if check and not is_flax:
        raise ValueError(f"{path} is not a Flax checkpoint: it has no manifest to check")
    if check:
        with found.noting(MANIFEST):
            found.add(*checkpoint.verify_manifest(path))
    return found


def _inspect_adapter(path: Path, found: Inspection) -> None:
    found.facts["format"] = "PEFT adapter"
    config = peft.read_adapter_config(path)
    base = config.get("base_model_name_or_path")
    found.facts |= {
        "adapter": config.get("peft_type"),
        "base": base,
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "modules": config.get("target_modules"),
    }
    found.reasons.append(
        f"an adapter is not a model: give it to its base, FlaxAutoReranker.from_finetuned({base!r}, "
        f"peft_path={str(path)!r}), or merge it with flax-rerank convert --peft-path"
    )


def _inspect_checkpoint(path: Path, config: Mapping[str, Any], is_flax: bool, found: Inspection) -> None:
    hf, facts = config, found.facts
    facts["format"] = "PyTorch"
    if is_flax:
        facts["format"] = f"Flax, version {config.get('format_version')}"
        kind, _, hf = read_flax_config(path, config)
    facts["architecture"] = ", ".join(convert.architectures_of(hf)) or hf.get("model_type")
    with found.noting("config.json"):
        if is_flax:
            facts["class"] = RERANKER_CLASS_MAPPING[kind].__name__
        else:
            by_name, by_config = auto.class_of_name(str(path)), convert.model_class_of(hf)
            facts["class_by_name"] = by_name.__name__ if by_name else "not in the mapping"
            facts["class_by_config"] = (
                RERANKER_CLASS_MAPPING[RerankerModelClass(by_config)].__name__ if by_config else "not said"
            )
    architecture = None
    with found.noting("config.json"):
        architecture = _read_architecture(hf, facts)
    with found.noting(f"{checkpoint.PARAMS}/" if is_flax else "a file of weights"):
        if is_flax:
            facts |= _facts_of_arrays(checkpoint.StoredParams(path / checkpoint.PARAMS))
            if architecture is not None:
                checkpoint.open_params(path, architecture[-1])
        else:
            source = convert.sentence_transformers.open_files(path, hf)
            facts |= _facts_of_arrays(source) | {"files": [file.name for file in source.files]}
            if architecture is not None:
                convert.open_checkpoint(path, hf, *architecture)
    if is_flax:
        facts |= {"whole_head_kept": (path / checkpoint.KEPT).is_file(), "scoring": config.get("scoring")}
        with found.noting(MANIFEST):
            if (path / MANIFEST).is_file():  # a checkpoint loads without it
                manifest = checkpoint.read_manifest(path)
                source_of = manifest.get("source") or {}
                facts["source"] = " ".join(filter(None, (source_of.get("name"), source_of.get("revision"))))
                facts["converted"] = f"{manifest.get('date')}, by {manifest.get('converter')}"
    with found.noting("a tokenizer file"):
        Tokenizer.from_folder(path)
    # Open it as the constructor does, which checks more.
    with found.noting("config.json"), warnings.catch_warnings(action="ignore"):
        spec = auto.find_spec(str(path))
        resolve(spec, spec.settings)
        facts["truncation"] = spec.truncation(spec.settings)


def _read_architecture(
    hf: Mapping[str, Any], facts: dict[str, Any]
) -> tuple[EncoderConfig | DecoderConfig | EncoderDecoderConfig, Readout, nnx.Module]:
    """The config, the readout and the abstract module of a config.json."""
    family = convert.family_of(hf)
    config, readout = family.architecture(HFConfig(hf))
    facts |= {fact: getattr(config, name) for fact, name in FIELDS.items() if hasattr(config, name)}
    facts["positions"] = config.max_length or config.max_position_embeddings
    if isinstance(config, DecoderConfig) and config.causal:
        facts["scores_after_layers"] = list(readout.layers)
    return config, readout, nnx.eval_shape(lambda: family.module(config, readout, FLOAT32))


def _facts_of_arrays(source: TensorSource | checkpoint.StoredParams) -> dict[str, Any]:
    shapes, dtypes = source.shapes(), source.dtypes()
    return {
        "parameters": sum(math.prod(shape) for name, shape in shapes.items() if not is_scale(name)),
        "dtypes": dict(Counter(dtype.name for dtype in dtypes.values())),
        "bytes": sum(math.prod(shape) * dtypes[name].itemsize for name, shape in shapes.items()),
    }
