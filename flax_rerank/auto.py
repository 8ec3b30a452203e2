"""FlaxAutoReranker: from a model's name to its class, in two levels of mapping."""

import os
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flax_rerank.hub import model_name
from flax_rerank.rerankers import (
    AbsReranker,
    FlaxListwiseReranker,
    FlaxLLMReranker,
    FlaxReranker,
    LayerWiseFlaxLLMReranker,
    LightWeightFlaxLLMReranker,
)
from flax_rerank.settings import RerankerModelClass
from flax_rerank.spec import Spec, UnknownKindError, open_spec
from flax_rerank.text.prompts import PROMPT_FORMATS, PromptFormat

RERANKER_CLASS_MAPPING: OrderedDict[RerankerModelClass, type[AbsReranker]] = OrderedDict(
    (RerankerModelClass(reranker.model_class), reranker)
    for reranker in (
        *(FlaxReranker, FlaxLLMReranker, LayerWiseFlaxLLMReranker, LightWeightFlaxLLMReranker),
        FlaxListwiseReranker,
    )
)


@dataclass(frozen=True)
class RerankerConfig:
    """How a named model is loaded.

    Attributes:
        model_class: the class to make.
        trust_remote_code: as in FlagEmbedding; without effect here, where no remote code runs.
        prompt_format: the prompt format, where the checkpoint's own files name none; None for that of the class.
    """

    model_class: type[AbsReranker]
    trust_remote_code: bool = False
    prompt_format: str | PromptFormat | None = None


_NAMES_OF_FORMATS: tuple[tuple[str | PromptFormat, tuple[str, ...]], ...] = (
    (
        "qwen3-reranker",
        (
            *("Qwen/Qwen3-Reranker-0.6B", "Qwen/Qwen3-Reranker-4B", "Qwen/Qwen3-Reranker-8B"),
            *("tomaarsen/Qwen3-Reranker-0.6B-seq-cls", "tomaarsen/Qwen3-Reranker-4B-seq-cls"),
            "tomaarsen/Qwen3-Reranker-8B-seq-cls",
        ),
    ),
    # Half of what mxbai-rerank takes for the largest score of this model, 9; it is 12 for others.
    (replace(PROMPT_FORMATS["mxbai-v2"], normal_shift=4.5), ("mixedbread-ai/mxbai-rerank-base-v2",)),
    ("mxbai-v2", ("mixedbread-ai/mxbai-rerank-large-v2",)),
    (
        "zerank",
        (
            *("zeroentropy/zerank-1", "zeroentropy/zerank-1-small", "zeroentropy/zerank-2"),
            *("zeroentropy/zerank-1-reranker", "zeroentropy/zerank-1-small-reranker"),
            "zeroentropy/zerank-2-reranker",
        ),
    ),
    ("ctxl-v2", tuple(f"ContextualAI/ctxl-rerank-v2-instruct-multilingual-{size}" for size in ("1b", "2b", "6b"))),
    ("nemotron", ("nvidia/llama-nemotron-rerank-1b-v2",)),
    ("monot5", tuple(f"castorini/monot5-{size}-msmarco" for size in ("base", "large", "3b"))),
)

AUTO_RERANKER_MAPPING: OrderedDict[str, RerankerConfig] = OrderedDict(
    [
        ("bge-reranker-base", RerankerConfig(FlaxReranker)),
        ("bge-reranker-large", RerankerConfig(FlaxReranker)),
        ("bge-reranker-v2-m3", RerankerConfig(FlaxReranker)),
        ("bge-reranker-v2-gemma", RerankerConfig(FlaxLLMReranker)),
        ("bge-reranker-v2-minicpm-layerwise", RerankerConfig(LayerWiseFlaxLLMReranker)),
        ("bge-reranker-v2.5-gemma2-lightweight", RerankerConfig(LightWeightFlaxLLMReranker)),
        ("jinaai/jina-reranker-v2-base-multilingual", RerankerConfig(FlaxReranker)),
        ("Alibaba-NLP/gte-multilingual-reranker-base", RerankerConfig(FlaxReranker)),
        ("maidalun1020/bce-reranker-base_v1", RerankerConfig(FlaxReranker)),
        ("jinaai/jina-reranker-v1-turbo-en", RerankerConfig(FlaxReranker)),
        # These ten are FlagEmbedding's.
        ("jinaai/jina-reranker-v1-tiny-en", RerankerConfig(FlaxReranker)),
        ("Alibaba-NLP/gte-reranker-modernbert-base", RerankerConfig(FlaxReranker)),
        ("ibm-granite/granite-embedding-reranker-english-r2", RerankerConfig(FlaxReranker)),
        *(
            (f"mixedbread-ai/mxbai-rerank-{size}-v1", RerankerConfig(FlaxReranker))
            for size in ("xsmall", "base", "large")
        ),
        *(
            (f"cross-encoder/ettin-reranker-{size}-v1", RerankerConfig(FlaxReranker))
            for size in ("17m", "32m", "68m", "150m", "400m", "1b")
        ),
        ("cross-encoder/ms-marco-electra-base", RerankerConfig(FlaxReranker)),
        ("cross-encoder/stsb-roberta-base", RerankerConfig(FlaxReranker)),
        *(
            (name, RerankerConfig(FlaxLLMReranker, prompt_format=prompt_format))
            for prompt_format, names in _NAMES_OF_FORMATS
            for name in names
        ),
        ("jinaai/jina-reranker-v3", RerankerConfig(FlaxListwiseReranker)),
    ]
)


class FlaxAutoReranker:
    """Chooses the reranker class for a model; made with `from_finetuned`, never by calling it."""

    def __init__(self) -> None:
        raise OSError("FlaxAutoReranker cannot be called: use FlaxAutoReranker.from_finetuned(model_name_or_path)")

    @classmethod
    def from_finetuned(
        cls,
        model_name_or_path: str | os.PathLike[str],
        model_class: str | RerankerModelClass | None = None,
        use_fp16: bool = False,
        trust_remote_code: bool | None = None,
        **settings: Any,
    ) -> AbsReranker:
        """Load a reranker.

        The class is that of `model_class` if given; else that of the name in `AUTO_RERANKER_MAPPING` (the
        full name, its last part, or a folder's name; for `x/checkpoint-500` that of `x`); else what the
        checkpoint's config.json says.

        Args:
            model_name_or_path: a folder, or a name on the Hugging Face hub.
            model_class: a `RerankerModelClass` or its value.
            use_fp16: half precision on TPU and GPU, which is the default there.
            trust_remote_code: no remote code ever runs here, so True changes nothing.
            settings: of the class, see `flax_rerank.settings`. A Flax checkpoint has its own (prompt, lengths,
                layers), which count where these say nothing.

        Raises:
            ValueError: neither the name nor a config.json says which class.
            TypeError: a setting that the class does not have.
        """
        spec = find_spec(
            model_name_or_path,
            model_class,
            use_fp16=use_fp16,
            trust_remote_code=bool(trust_remote_code),
            **settings,
        )
        return class_of(spec).from_spec(spec)


def find_spec(
    name: str | os.PathLike[str], model_class: str | RerankerModelClass | None = None, **settings: Any
) -> Spec:
    """The spec of the model called `name`, whose class is found as `FlaxAutoReranker.from_finetuned` does it.

    Raises:
        As `FlaxAutoReranker.from_finetuned`.
    """
    name = model_name(name)
    chosen, known = find_model_class(name, model_class)
    config = config_of_name(name)
    try:
        return open_spec(name, chosen, known, None if config is None else config.prompt_format, **settings)
    except UnknownKindError as error:
        raise ValueError(
            f"{error}. Known names: {', '.join(AUTO_RERANKER_MAPPING)}; or pass model_class, one of {_model_classes()}"
        ) from error


def find_model_class(
    name: str, model_class: str | RerankerModelClass | None = None
) -> tuple[RerankerModelClass | None, RerankerModelClass | None]:
    """The kind that `model_class` asks for, and that which the name stands for; None where they say nothing.

    Raises:
        ValueError: a model class that does not exist.
    """
    if model_class is not None:
        return _as_model_class(model_class), None
    named = class_of_name(name)
    return None, None if named is None else RerankerModelClass(named.model_class)


def class_of(spec: Spec) -> type[AbsReranker]:
    """The class that scores with a spec: that of its name, where this has the spec's kind."""
    named = config_of_name(spec.name)
    if named is not None and named.model_class.model_class == spec.model_class.value:
        return named.model_class
    return RERANKER_CLASS_MAPPING[spec.model_class]


def class_of_name(name: str) -> type[AbsReranker] | None:
    """The class that `AUTO_RERANKER_MAPPING` has for a name or folder, or None."""
    config = config_of_name(name)
    return None if config is None else config.model_class


def config_of_name(name: str) -> RerankerConfig | None:
    """The entry of `AUTO_RERANKER_MAPPING` for a name or folder, or None."""
    parts = Path(name).parts
    if parts and parts[-1].startswith("checkpoint-"):
        parts = parts[:-1]
    by_last_part = {key.rpartition("/")[2]: config for key, config in AUTO_RERANKER_MAPPING.items()}
    return AUTO_RERANKER_MAPPING.get("/".join(parts[-2:])) or by_last_part.get(parts[-1] if parts else "")


def _as_model_class(value: str | RerankerModelClass) -> RerankerModelClass:
    try:
        return RerankerModelClass(value)
    except ValueError as error:
        raise ValueError(f"model_class {value!r} is not one of {_model_classes()}") from error


def _model_classes() -> str:
    return ", ".join(model_class.value for model_class in RerankerModelClass)
