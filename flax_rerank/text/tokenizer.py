"""The tokenizer of a checkpoint folder: the `tokenizers` library on tokenizer.json.

Transformers is used only where a folder has no tokenizer.json: it rebuilds some tokenizers on loading and
then gives other ids than the checkpoint was trained with.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend
from tqdm import tqdm

from flax_rerank.json_files import read_object

logger = logging.getLogger(__name__)

CHUNK = 1024
FAILED = "the tokenizer fails; is its tokenizer.json sound?"
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
    "chat_template.jinja",
)
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that adds, cuts and pads nothing. Safe to share between threads.

    Attributes:
        backend: the tokenizer of the `tokenizers` library.
        bos_token_id: None where the checkpoint has no such token.
        unknown_bos_token: a BOS token that the checkpoint names, and that the vocabulary does not have.
        pad_token_id: None where the checkpoint has no such token.
        truncation_side: "right" or "left", the side where long texts are cut.
        files: the files it came from, all that another checkpoint folder needs to have the same one.
        special_tokens: the texts of those that its files name, by `SPECIAL_TOKENS`.
        max_length: tokens of an input, where the checkpoint says (model_max_length).
        chat_templates: by name, "default" the one without.
    """

    backend: Backend
    bos_token_id: int | None
    pad_token_id: int | None
    truncation_side: str
    files: tuple[Path, ...]
    unknown_bos_token: str | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    max_length: int | None = None
    chat_templates: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Read the tokenizer of a checkpoint folder.

        Raises:
            FileNotFoundError: the folder has no tokenizer files.
            ValueError: the files are corrupt; names file and field.
        """
        files = tuple(folder / name for name in FILES if (folder / name).is_file())
        if (folder / "tokenizer.json").is_file():
            with _named(f"{folder / 'tokenizer.json'} cannot be read"):
                backend = Backend.from_file(str(folder / "tokenizer.json"))
        elif any(path.suffix in (".txt", ".model") or path.name == "vocab.json" for path in files):
            backend = _through_transformers(folder)
        else:
            raise FileNotFoundError(f"no tokenizer in {folder}: looked for {', '.join(FILES)}")
        backend.no_truncation()
        backend.no_padding()
        found = _settings(folder)
        bos, pad = found.get("bos_token"), found.get("pad_token")
        most = found.get("model_max_length")
        templates = _templates(folder, found.get("chat_template"))
        bos_token_id = None if bos is None else backend.token_to_id(bos)
        return cls(
            backend=backend,
            bos_token_id=bos_token_id,
            pad_token_id=None if pad is None else backend.token_to_id(pad),
            truncation_side=found["truncation_side"],
            files=files,
            unknown_bos_token=bos if bos_token_id is None else None,
            special_tokens={name: found[name] for name in SPECIAL_TOKENS if found.get(name)},
            # transformers writes a very large number for none.
            max_length=int(most) if isinstance(most, int | float) and 0 < most < 1 << 31 else None,
            chat_templates=templates,
        )

    def encode(self, text: str) -> np.ndarray:
        """Token ids (int32) of one text, without special tokens. Raises ValueError if the tokenizer fails."""
        with _named(FAILED):
            return np.asarray(self.backend.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_many(self, texts: Sequence[str], *, show_progress_bar: bool = False) -> list[np.ndarray]:
        """Token ids (int32) of many texts, without special tokens. Raises ValueError if the tokenizer fails."""
        ids: list[np.ndarray] = []
        with tqdm(total=len(texts), desc="Tokenizing", unit="text", leave=None, disable=not show_progress_bar) as bar:
            for start in range(0, len(texts), CHUNK):
                batch = list(texts[start : start + CHUNK])
                with _named(FAILED):
                    encodings = self.backend.encode_batch_fast(batch, add_special_tokens=False)
                ids.extend(np.asarray(encoding.ids, np.int32) for encoding in encodings)
                bar.update(len(batch))
        return ids

    def cut(self, ids: np.ndarray, length: int) -> np.ndarray:
        """At most `length` tokens of `ids`."""
        return ids[:length] if self.truncation_side == "right" else ids[max(0, len(ids) - length) :]


@contextmanager
def _named(what: str) -> Iterator[None]:
    """An error of the `tokenizers` library becomes a ValueError. It raises Exception itself, and for what it does not
    foresee a PanicException, which is not an Exception and cannot be imported."""
    try:
        yield
    except BaseException as error:
        if type(error) is Exception or type(error).__name__ == "PanicException" or isinstance(error, TypeError):
            raise ValueError(f"{what}: {error}") from error
        raise


def _through_transformers(folder: Path) -> Backend:
    from transformers import AutoTokenizer

    logger.warning("%s has no tokenizer.json; transformers makes one from the other files", folder)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False).backend_tokenizer


def _templates(folder: Path, configured: Any) -> dict[str, str]:
    """The chat templates of a tokenizer: those of tokenizer_config.json, one text or a list with names, and that of
    a file of its own, which counts first."""
    if isinstance(configured, str):
        configured = [{"name": "default", "template": configured}]
    found: dict[str, str] = {}
    for entry in configured or []:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in ("name", "template")):
            raise ValueError(f"{folder / 'tokenizer_config.json'}: chat_template must be a text, or texts with names")
        found[entry["name"]] = entry["template"]
    if (folder / "chat_template.jinja").is_file():
        found["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return found


def _settings(folder: Path) -> dict[str, Any]:
    """What is read of tokenizer_config.json and special_tokens_map.json."""
    found: dict[str, Any] = {"truncation_side": "right"}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / file
        if not path.is_file():
            continue
        fields = read_object(path)
        found |= {name: fields[name] for name in ("model_max_length", "chat_template") if name in fields}
        for name in (*SPECIAL_TOKENS, "truncation_side"):
            value = fields.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if value is not None and not isinstance(text, str):
                raise ValueError(f"{path}: {name} is {value!r}; it must be a string, or an object with its content")
            found[name] = text or found.get(name)
    if found["truncation_side"] not in ("left", "right"):
        raise ValueError(f"{folder}: truncation_side is {found['truncation_side']!r}; it must be 'left' or 'right'")
    return found
