"""The tokenizer of a checkpoint folder: the `tokenizers` library on tokenizer.json.

Transformers is used only where a folder has no tokenizer.json: it rebuilds some tokenizers on loading and
then gives other ids than the checkpoint was trained with.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend
from tqdm import tqdm

logger = logging.getLogger(__name__)

CHUNK = 1024
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that adds, cuts and pads nothing. Safe to share between threads.

    Attributes:
        backend: the tokenizer of the `tokenizers` library.
        bos_token_id: None where the checkpoint has no such token.
        pad_token_id: None where the checkpoint has no such token.
        truncation_side: "right" or "left", the side where long texts are cut.
        files: the files it came from, all that another checkpoint folder needs to have the same one.
    """

    backend: Backend
    bos_token_id: int | None
    pad_token_id: int | None
    truncation_side: str
    files: tuple[Path, ...]

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Read the tokenizer of a checkpoint folder.

        Raises:
            FileNotFoundError: the folder has no tokenizer files.
            ValueError: the files are corrupt.
        """
        files = tuple(folder / name for name in FILES if (folder / name).is_file())
        if (folder / "tokenizer.json").is_file():
            try:
                backend = Backend.from_file(str(folder / "tokenizer.json"))
            except Exception as error:
                raise ValueError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error
        elif any(path.suffix in (".txt", ".model") or path.name == "vocab.json" for path in files):
            backend = _through_transformers(folder)
        else:
            raise FileNotFoundError(f"no tokenizer in {folder}: looked for {', '.join(FILES)}")
        backend.no_truncation()
        backend.no_padding()
        settings = _settings(folder)
        return cls(
            backend=backend,
            bos_token_id=_token_id(backend, settings.get("bos_token")),
            pad_token_id=_token_id(backend, settings.get("pad_token")),
            truncation_side=settings.get("truncation_side", "right"),
            files=files,
        )

    def encode(self, text: str) -> np.ndarray:
        """Token ids (int32) of one text, without special tokens."""
        return np.asarray(self.backend.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_many(self, texts: Sequence[str], *, show_progress_bar: bool = False) -> list[np.ndarray]:
        """Token ids (int32) of many texts, without special tokens."""
        ids: list[np.ndarray] = []
        with tqdm(total=len(texts), desc="Tokenizing", unit="text", leave=None, disable=not show_progress_bar) as bar:
            for start in range(0, len(texts), CHUNK):
                batch = list(texts[start : start + CHUNK])
                encodings = self.backend.encode_batch_fast(batch, add_special_tokens=False)
                ids.extend(np.asarray(encoding.ids, np.int32) for encoding in encodings)
                bar.update(len(batch))
        return ids

    def cut(self, ids: np.ndarray, length: int) -> np.ndarray:
        """At most `length` tokens of `ids`."""
        return ids[:length] if self.truncation_side == "right" else ids[max(0, len(ids) - length) :]


def _through_transformers(folder: Path) -> Backend:
    from transformers import AutoTokenizer

    logger.warning("%s has no tokenizer.json; transformers makes one from the other files", folder)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False).backend_tokenizer


def _settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path} is not JSON: {error}") from error
            settings |= {key: value for key, value in found.items() if value is not None}
    return settings


def _token_id(backend: Backend, token: str | dict[str, Any] | None) -> int | None:
    if token is None:
        return None
    return backend.token_to_id(token["content"] if isinstance(token, dict) else token)
