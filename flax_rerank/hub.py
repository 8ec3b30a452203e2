"""A model name to a local folder."""

import re
from pathlib import Path

from flax_rerank.tokenizer import FILES as TOKENIZER_FILES

CONFIG_FILES = ("config.json", "adapter_config.json")
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
PICKLE_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


def local_folder(name: str, cache_dir: str | None = None, *, config_only: bool = False) -> Path:
    """The folder of a model: `name` itself if it is one, else a snapshot from the Hugging Face hub.

    Only config, tokenizer and weights are downloaded, and pickled weights only where there are no others.

    Raises:
        FileNotFoundError: a path that does not exist.
        OSError: the hub does not have the model or cannot be reached.
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

    files = [*CONFIG_FILES] if config_only else [*CONFIG_FILES, *TOKENIZER_FILES, *WEIGHT_FILES]
    try:
        folder = Path(snapshot_download(name, cache_dir=cache_dir, allow_patterns=files))
        if not config_only and not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, cache_dir=cache_dir, allow_patterns=[*files, *PICKLE_FILES]))
        return folder
    except (OSError, HTTPError, HFValidationError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise OSError(
            f"{name} is no local folder and could not be had from the Hugging Face hub ({reason}). "
            "A folder with config.json, tokenizer and weights works without the hub"
        ) from error
