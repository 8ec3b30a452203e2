"""A model name to a local folder."""

import os
import re
from pathlib import Path

from flax_rerank.text.tokenizer import FILES as TOKENIZER_FILES

CONFIG_FILES = (
    *("config.json", "adapter_config.json"),
    *("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "*_*/config.json"),
    "additional_chat_templates/*.jinja",
)
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
FLAX_FILES = ("params/*", "manifest.json")
PICKLE_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json", "*_*/pytorch_model.bin")


class HubError(OSError):
    """A model is not on the Hugging Face hub, or the hub cannot be reached."""


def model_name(name: str | os.PathLike[str]) -> str:
    """The name of a model, as a string.

    Raises:
        TypeError, ValueError: it is not one.
    """
    if not isinstance(name, str | os.PathLike):
        raise TypeError(f"the model is {name!r}; it must be a folder or a name on the Hugging Face hub")
    if not os.fspath(name).strip():
        raise ValueError("the name of the model is empty; give a folder or a name on the Hugging Face hub")
    return os.fspath(name)


def local_folder(name: str, cache_dir: str | os.PathLike[str] | None = None, *, config_only: bool = False) -> Path:
    """The folder of a model: `name` itself if it is one, else a snapshot from the Hugging Face hub.

    Only config, tokenizer and weights are downloaded, and pickled weights only where there are no others.

    Raises:
        FileNotFoundError: a path that does not exist.
        HubError: the hub does not have the model or cannot be reached.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise FileNotFoundError(f"{name} is a file; a model is a folder with config.json, tokenizer and weights")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise FileNotFoundError(f"there is no folder {name}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    files = [*CONFIG_FILES]
    if not config_only:
        files += [*TOKENIZER_FILES, *WEIGHT_FILES, *FLAX_FILES]
    cache_dir = None if cache_dir is None else os.fspath(cache_dir)
    try:
        folder = Path(snapshot_download(name, cache_dir=cache_dir, allow_patterns=files))
        if not config_only and not any(folder.glob("*.safetensors")) and not (folder / "params").is_dir():
            folder = Path(snapshot_download(name, cache_dir=cache_dir, allow_patterns=[*files, *PICKLE_FILES]))
        return folder
    except (OSError, HTTPError, HFValidationError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise HubError(
            f"{name} is not a local folder, and the Hugging Face hub did not give it ({reason}). "
            "A folder with config.json, tokenizer and weights works without the hub"
        ) from error
