"""What all rerankers have in common: loading, scoring, ranking."""

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx

from flax_rerank import checkpoint, convert
from flax_rerank.batching import Planner, Shape, Table, computed_tokens
from flax_rerank.dtypes import choose_dtype
from flax_rerank.hub import local_folder
from flax_rerank.pairs import Instruction, Template, TokenizedPairs, as_pairs, tokenize
from flax_rerank.scoring import Scorer
from flax_rerank.sharding import Devices, find_devices, make_mesh, replicated
from flax_rerank.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Pairs = Sequence[Sequence[str]] | Sequence[str]


@dataclass(frozen=True)
class RerankOutput:
    """Scores, and what it took to compute them.

    Attributes:
        scores: float32 [pairs], in the order of the pairs; for rerankers with cutoff layers a dict from layer to
            these.
        tokens: int32 [pairs], tokens of each pair with instructions, prompt and special tokens.
        truncated: bool [pairs], whether the query or the passage of a pair was cut.
        steps: batches run.
        shapes: distinct (rows, length) among them; each is compiled once in the life of a reranker.
        computed_tokens: rows times length, over all steps.
        padding_tokens: those of them that belong to no pair.
    """

    scores: np.ndarray | dict[int, np.ndarray]
    tokens: np.ndarray
    truncated: np.ndarray
    steps: int
    shapes: tuple[Shape, ...]
    computed_tokens: int
    padding_tokens: int


class AbsReranker(ABC):
    """A reranker: a model, its tokenizer, and how pairs are put to it.

    Subclasses say which instructions and prompt they use by making a `Template`. Arguments that all
    rerankers share:

    Args:
        model_name_or_path: a folder (PyTorch or Flax checkpoint), or a name on the Hugging Face hub.
        use_fp16: half precision where the platform is fast in it; see `dtype`.
        use_bf16: bfloat16, on CPU too.
        dtype: "float32" or "bfloat16". By default bfloat16 on TPU and GPU, float32 on CPU.
        query_instruction_for_rerank, passage_instruction_for_rerank: texts put before query and passage.
        query_instruction_format, passage_instruction_format: how, as `format.format(instruction, text)`.
        trust_remote_code: no remote code ever runs here, so True changes nothing.
        cache_dir: where snapshots from the hub are kept.
        devices: see `flax_rerank.sharding.find_devices`; by default all local devices share each batch.
        batch_size: with `max_length`, the most tokens that a step computes (batch_size x max_length).
        query_max_length: tokens of the query; by default 3/4 of `max_length`.
        max_length: tokens.
        normalize: give sigmoid(logit) instead of the logit.
        show_progress_bar: by default for calls of more than `batch_size` pairs.
        passage_max_length: has no effect, here as in FlagEmbedding; given, it warns.

    Raises:
        FileNotFoundError: a folder without config.json, tokenizer or weights.
        OSError: the hub cannot be reached.
        CheckpointError: weights that do not fit the config.
        ValueError: `max_length` above the model's positions; an embedding model; a contradiction of dtypes.
        NotImplementedError: an architecture that is not covered.
    """

    model_class: ClassVar[str]

    def __init__(
        self,
        model_name_or_path: str,
        *,
        use_fp16: bool,
        use_bf16: bool,
        dtype: str | None,
        query_instruction_for_rerank: str | None,
        query_instruction_format: str,
        passage_instruction_for_rerank: str | None,
        passage_instruction_format: str,
        cache_dir: str | None,
        devices: Devices,
        batch_size: int,
        query_max_length: int | None,
        max_length: int,
        normalize: bool,
        show_progress_bar: bool | None,
        passage_max_length: int | None,
    ) -> None:
        if passage_max_length is not None:
            warnings.warn(
                "passage_max_length has no effect, here as in FlagEmbedding: max_length bounds the pair",
                stacklevel=3,
            )
        self.model_name_or_path = str(model_name_or_path)
        self.query_instruction = Instruction(query_instruction_for_rerank, query_instruction_format)
        self.passage_instruction = Instruction(passage_instruction_for_rerank, passage_instruction_format)
        self.batch_size = batch_size
        self.query_max_length = query_max_length
        self.max_length = max_length
        self.normalize = normalize
        self.show_progress_bar = show_progress_bar

        self.mesh = make_mesh(find_devices(devices))
        platform = self.mesh.devices.flat[0].platform
        self.dtype = choose_dtype(dtype, use_fp16=use_fp16, use_bf16=use_bf16, platform=platform)
        folder = local_folder(self.model_name_or_path, cache_dir)
        self.source_config = convert.read_config(folder)
        self.tokenizer = Tokenizer.from_folder(folder)
        self.model = self._load_model(folder, cache_dir)
        self._scorer = Scorer(self.model, self.mesh)
        self._tables: tuple[Table, ...] = ()
        self._template(self._lengths(None, None))

    def _config_overrides(self) -> dict[str, Any]:
        """Fields of the model's config that the class decides."""
        return {}

    def _adapter(self, cache_dir: str | None) -> Path | None:
        """The folder of an adapter to merge into the weights."""
        return None

    def _load_model(self, folder: Path, cache_dir: str | None) -> nnx.Module:
        placement = replicated(self.mesh)
        config = self.source_config
        if checkpoint.is_flax_config(config):
            if self._adapter(cache_dir) is not None:
                raise ValueError(f"an adapter is merged at conversion: {folder} is converted already")
            self.source_config = config["source_config"]
            if config["model_class"] != self.model_class:
                raise ValueError(
                    f"{folder} is a {config['model_class']} reranker, {type(self).__name__} takes {self.model_class}"
                )
            return checkpoint.load_model(folder, config, self.dtype, placement, **self._config_overrides())
        named = convert.model_class_of(config)
        if named not in (None, self.model_class):
            raise ValueError(f"{folder} is a {named} reranker, {type(self).__name__} takes {self.model_class}")
        return convert.load_model(
            folder,
            self.dtype,
            lambda array: jax.device_put(array, placement),
            adapter=self._adapter(cache_dir),
            **self._config_overrides(),
        )

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a Flax checkpoint, from which `from_finetuned(path)` loads without PyTorch's files.

        Raises:
            FileExistsError: `path` is there and `overwrite` is False.
        """
        checkpoint.save(
            Path(path),
            self.model,
            self.tokenizer,
            model_class=self.model_class,
            source_config=self.source_config,
            overwrite=overwrite,
        )

    @abstractmethod
    def _template(self, lengths: "Lengths") -> Template:
        """The template for these lengths. Raises ValueError where the model has too few positions."""

    def _lengths(self, query_max_length: int | None, max_length: int | None) -> "Lengths":
        max_length = self.max_length if max_length is None else max_length
        if query_max_length is None:
            query_max_length = self.query_max_length
        if query_max_length is None:
            query_max_length = max_length * 3 // 4
        for name, value in (("max_length", max_length), ("query_max_length", query_max_length)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        return Lengths(query_max_length, max_length)

    def _run(
        self,
        sentence_pairs: Pairs,
        template: Template,
        lengths: "Lengths",
        *,
        batch_size: int | None,
        normalize: bool | None,
        show_progress_bar: bool | None,
        outputs: int = 1,
        options: Callable[[TokenizedPairs, Sequence[int]], Callable[[int], Mapping[str, Any]]] | None = None,
    ) -> RerankOutput:
        """Score pairs; the scores are float64 [pairs, outputs], as many as the model has with these options."""
        pairs = as_pairs(sentence_pairs)
        batch_size = self.batch_size if batch_size is None else batch_size
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        if not pairs:
            return RerankOutput(np.zeros((0, outputs)), np.zeros(0, np.int32), np.zeros(0, bool), 0, (), 0, 0)
        if show_progress_bar is None:
            show_progress_bar = self.show_progress_bar
        if show_progress_bar is None:
            show_progress_bar = len(pairs) > batch_size
        tokenized = tokenize(
            pairs,
            self.tokenizer,
            template,
            query_instruction=self.query_instruction,
            passage_instruction=self.passage_instruction,
            show_progress_bar=show_progress_bar,
        )
        tokens = tokenized.lengths
        planner = Planner(template.max_tokens, batch_size * lengths.max_length, self._scorer.row_multiple)
        table = planner.choose(tokens, self._tables)
        if table not in self._tables:
            self._tables = (table, *self._tables)
        steps = planner.steps(tokens, table)
        scores = self._scorer(
            tokenized,
            steps,
            options(tokenized, [shape.length for shape in table]) if options else lambda length: {},
            show_progress_bar=show_progress_bar,
        ).astype(np.float64)
        # The same pair in steps of two shapes differs by rounding: all take the score of the first, so that ties stay.
        key = tokenized.query_index * len(tokenized.texts) + tokenized.passage_index
        _, first, same = np.unique(key, return_index=True, return_inverse=True)
        scores = scores[first[same]]
        if self.normalize if normalize is None else normalize:
            scores = sigmoid(scores)
        computed = computed_tokens(steps)
        return RerankOutput(
            scores=scores,
            tokens=tokens,
            truncated=tokenized.truncated,
            steps=len(steps),
            shapes=tuple(sorted({step.shape for step in steps})),
            computed_tokens=computed,
            padding_tokens=computed - int(tokens.sum()),
        )

    @abstractmethod
    def compute_score(self, sentence_pairs: Pairs, **overrides: Any) -> list[Any]:
        """Scores of one pair or many, always as a list."""

    def rank(
        self,
        query: str,
        passages: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = True,
        **overrides: Any,
    ) -> list[dict[str, Any]]:
        """Order passages by their score for a query, as sentence-transformers' `CrossEncoder.rank` does.

        Args:
            query: the query.
            passages: what to rank.
            top_k: how many to return; None for all.
            return_documents: give the text of each passage too.
            overrides: arguments of `compute_score`.

        Returns:
            Best first, ties in the order of `passages`: dicts with `corpus_id` (position in `passages`),
            `score`, and `text` if `return_documents`.
        """
        if isinstance(passages, str):
            raise TypeError("passages is a single string; it must be a sequence of strings")
        scores = self.compute_score([(query, passage) for passage in passages], **overrides)
        if scores and not isinstance(scores[0], float):
            raise ValueError("rank takes the scores of one layer: give one cutoff layer")
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[:top_k]
        results: list[dict[str, Any]] = [{"corpus_id": index, "score": scores[index]} for index in order]
        if return_documents:
            for result in results:
                result["text"] = passages[result["corpus_id"]]
        return results


@dataclass(frozen=True)
class Lengths:
    """The limits of one call, in tokens."""

    query_max_length: int
    max_length: int


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow. In float64, large scores keep their order."""
    return np.exp(-np.logaddexp(0.0, -logits))
