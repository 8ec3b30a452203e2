"""What a folder is, and whether it would load; no weight is read and nothing is compiled."""

import json
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
from flax_rerank.checkpoint.manifest import MANIFEST
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.rules import TensorSource
from flax_rerank.convert.torch_files import open_torch_files
from flax_rerank.dtypes import FLOAT32
from flax_rerank.models import DecoderConfig, EncoderConfig
from flax_rerank.models.readout import Readout
from flax_rerank.params import CheckpointError
from flax_rerank.rerankers.call import resolve
from flax_rerank.settings import RerankerModelClass
from flax_rerank.text.tokenizer import Tokenizer


@dataclass
class Inspection:
    """What was found in a folder.

    Attributes:
        facts: by name, in the order to show them.
        reasons: all that was found why it would not load with the defaults of its class; empty where it would.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    @property
    def loads(self) -> bool:
        return not self.reasons

    @contextmanager
    def noting(self, what: str = "config.json") -> Iterator[None]:
        """An error of what is tried becomes a reason; `what` is read there."""
        try:
            yield
        except CheckpointError as error:
            self.reasons += error.faults
        except (ValueError, OSError, NotImplementedError, ImportError) as error:
            self.reasons.append(str(error))
        except (TypeError, LookupError, AttributeError, ArithmeticError) as error:
            self.reasons.append(f"{what} holds something unexpected: {error!r}")


def inspect_folder(path: Path, *, check: bool = False) -> Inspection:
    """Look at the folder of a PyTorch or Flax checkpoint, or of an adapter.

    Args:
        path: the folder.
        check: compare the files of a Flax checkpoint with the hashes of its manifest, which reads them all.

    Raises:
        FileNotFoundError: `path` is no folder.
        ValueError: `check` for what is no Flax checkpoint.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder; a model is a folder with config.json, tokenizer and weights")
    found = Inspection({"path": str(path)})
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        _inspect_adapter(path, found)
    else:
        with found.noting():
            config = convert.read_config(path)
            if checkpoint.is_flax_config(config):
                _inspect_flax(path, config, found)
            else:
                _inspect_torch(path, config, found)
    if check:
        if not found.facts.get("format", "").startswith("Flax"):
            raise ValueError(f"{path} is no Flax checkpoint: it has no manifest to check")
        with found.noting(MANIFEST):
            found.reasons += [fault for fault in checkpoint.verify_manifest(path) if fault not in found.reasons]
    return found


def _inspect_adapter(path: Path, found: Inspection) -> None:
    found.facts["format"] = "PEFT adapter"
    with found.noting():
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path")
        found.facts |= {
            "adapter": config.get("peft_type"),
            "base": base,
            "rank": config.get("r"),
            "alpha": config.get("lora_alpha"),
            "modules": config.get("target_modules"),
        }
        found.reasons.append(
            f"an adapter is no model: give it to its base, FlaxAutoReranker.from_finetuned({base!r}, "
            f"peft_path={str(path)!r}), or merge it with flax-rerank convert --peft-path"
        )


def _inspect_torch(path: Path, hf: Mapping[str, Any], found: Inspection) -> None:
    found.facts |= {"format": "PyTorch", "architecture": _architecture(hf)}
    with found.noting():
        found.facts |= _facts_of_class(path, hf)
    architecture = _read_architecture(hf, found)
    with found.noting("a file of weights"):
        source = open_torch_files(path)
        found.facts |= _facts_of_arrays(source) | {"files": [file.name for file in source.files]}
        if architecture is not None:
            convert.open_checkpoint(path, hf, *architecture)
    with found.noting("a tokenizer file"):
        Tokenizer.from_folder(path)
    _open(path, found)


def _inspect_flax(path: Path, config: Mapping[str, Any], found: Inspection) -> None:
    found.facts["format"] = f"Flax, version {config['format_version']}"
    checkpoint.require_known_format(path, config)
    found.facts["architecture"] = _architecture(config["source_config"])
    found.facts["class"] = RERANKER_CLASS_MAPPING[RerankerModelClass(config["model_class"])].__name__
    architecture = _read_architecture(config["source_config"], found)
    with found.noting(f"{checkpoint.PARAMS}/"):
        found.facts |= _facts_of_arrays(checkpoint.StoredParams(path / checkpoint.PARAMS))
        if architecture is not None:
            checkpoint.open_params(path, architecture[-1])
    found.facts |= {"whole_head_kept": (path / checkpoint.KEPT).is_file(), "scoring": config.get("scoring")}
    with found.noting(MANIFEST):
        if (path / MANIFEST).is_file():  # without it, a checkpoint loads all the same
            manifest = checkpoint.read_manifest(path)
            source = manifest.get("source") or {}
            found.facts |= {
                "source": " ".join(filter(None, (source.get("name"), source.get("revision")))),
                "converted": f"{manifest.get('date')}, by {manifest.get('converter')}",
            }
    with found.noting("a tokenizer file"):
        Tokenizer.from_folder(path)
    _open(path, found)


def _architecture(hf: Mapping[str, Any]) -> str | None:
    return ", ".join(hf.get("architectures") or ()) or hf.get("model_type")


def _facts_of_class(path: Path, hf: Mapping[str, Any]) -> dict[str, str]:
    """What the folder's name and config.json say about the class of a PyTorch checkpoint."""
    named = convert.model_class_of(hf)
    by_name = auto.class_of_name(str(path))
    by_config = None if named is None else RERANKER_CLASS_MAPPING[RerankerModelClass(named)]
    return {
        "class_by_name": by_name.__name__ if by_name else "not in the mapping",
        "class_by_config": by_config.__name__ if by_config else "not said",
    }


def _read_architecture(
    hf: Mapping[str, Any], found: Inspection
) -> tuple[EncoderConfig | DecoderConfig, Readout, nnx.Module] | None:
    """The config, the readout and the abstract module of a config.json; None where it does not describe a model."""
    with found.noting():
        family = convert.family_of(hf)
        config, readout = family.architecture(HFConfig(hf))
        found.facts |= {
            "layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "attention_heads": config.num_attention_heads,
            "vocabulary": config.vocab_size,
        }
        if isinstance(config, EncoderConfig):
            found.facts |= {"positions": config.max_length}
        else:
            found.facts |= {
                "key_value_heads": config.num_key_value_heads,
                "scores_after_layers": list(readout.layers),
                "positions": config.max_position_embeddings,
            }
        return config, readout, nnx.eval_shape(lambda: family.module(config, readout, FLOAT32))
    return None


def _facts_of_arrays(source: TensorSource | checkpoint.StoredParams) -> dict[str, Any]:
    shapes, dtypes = source.shapes(), source.dtypes()
    return {
        "parameters": sum(map(math.prod, shapes.values())),
        "dtypes": dict(Counter(dtype.name for dtype in dtypes.values())),
        "bytes": sum(math.prod(shape) * dtypes[name].itemsize for name, shape in shapes.items()),
    }


def _open(path: Path, found: Inspection) -> None:
    """Where nothing stands against it so far, open it as the constructor does, which checks more."""
    if not found.loads:
        return
    with found.noting(), warnings.catch_warnings(action="ignore"):
        spec = auto.find_spec(str(path))
        resolve(spec, spec.settings)
