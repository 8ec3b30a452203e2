"""The spec of a model of which only config.json may be at hand: the published ones are known by name."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing

from flax_rerank import convert
from flax_rerank.auto import config_of_name, find_model_class
from flax_rerank.hub import local_folder
from flax_rerank.spec import Spec, describe
from flax_rerank.text.tokenizer import Tokenizer

PUBLISHED = files("flax_rerank") / "published_configs.json"


def find_spec(name: str, model_class: str | None = None, **settings: Any) -> Spec:
    """A model's spec from a folder's config.json, from the published ones by name, or from the hub.

    Without tokenizer.json, its tokenizer makes a token of each word and mark, and has no `files`.

    Args:
        name, model_class, settings: as for `FlaxAutoReranker.from_finetuned`.

    Raises:
        As `FlaxAutoReranker.from_finetuned`.
    """
    asked, named = find_model_class(name, model_class)
    config = config_of_name(name)
    kinds = asked, named, None if config is None else config.prompt_format
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    by_last_part = {key.rpartition("/")[2]: key for key in published}
    known = name if name in published else by_last_part.get(name.removeprefix("BAAI/"))
    if known is not None and not Path(name).expanduser().is_dir():
        return describe(name, None, published[known], _tokenizer_of_words(), *kinds, **settings)
    folder = local_folder(name, settings.get("cache_dir"), config_only=True)
    has_tokenizer = (folder / "tokenizer.json").is_file()
    tokenizer = Tokenizer.from_folder(folder) if has_tokenizer else _tokenizer_of_words()
    return describe(name, folder, convert.read_config(folder), tokenizer, *kinds, **settings)


def _tokenizer_of_words() -> Tokenizer:
    """Prompts and separators have nearly as many tokens as with the model's own."""
    backend = tokenizers.Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = Split(tokenizers.Regex(r"\n|\w+|[^\w\s]"), "removed", invert=True)
    # XLM-RoBERTa's, the only encoder among the published models.
    backend.post_processor = TemplateProcessing(
        pair="<s> $A </s> </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return Tokenizer(backend, bos_token_id=1, pad_token_id=0, truncation_side="right", files=())
