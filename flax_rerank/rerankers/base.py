"""What all rerankers have in common: loading, scoring, ranking."""

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from flax_rerank import checkpoint, convert
from flax_rerank.batching import Planner, Shape, Step, Table, computed_tokens, max_step_tokens
from flax_rerank.dtypes import choose_dtype
from flax_rerank.export import TorchTensors, export
from flax_rerank.hub import local_folder
from flax_rerank.pairs import Instruction, Template, TokenizedPairs, as_pairs, tokenize
from flax_rerank.params import ModuleParameters
from flax_rerank.rerankers.arguments import scoring_arguments
from flax_rerank.scoring import Scorer
from flax_rerank.sharding import Devices, MeshShape, ShardingRules, make_mesh, parameter_shardings
from flax_rerank.tokenizer import Tokenizer

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


@dataclass(frozen=True)
class Lengths:
    """The limits of one call, in tokens."""

    query_max_length: int
    max_length: int


@dataclass(frozen=True)
class Call:
    """The arguments of one call, with the constructor's where none were given.

    Attributes:
        template: what is put around query and passage.
        lengths: the limits.
        batch_size: times `lengths.max_length`, the most tokens of a step.
        normalize: whether scores are sigmoids.
        layers: the layer that each output of the model belongs to, as the caller asked for them; None where there
            is but one score.
        outputs: the model's output for each of these.
        options: for pairs and a table's lengths, the model's keyword arguments for a step of a given length.
    """

    template: Template
    lengths: Lengths
    batch_size: int
    normalize: bool
    layers: tuple[int, ...] | None = None
    outputs: tuple[int, ...] = (0,)
    options: Callable[[TokenizedPairs, Sequence[int]], Callable[[int], Mapping[str, Any]]] = lambda pairs, table: (
        lambda length: {}
    )


@dataclass(frozen=True)
class Prepared:
    """Pairs that are ready to be scored: tokenised and planned, nothing computed yet.

    Attributes:
        table: the shapes that the steps are of.
        steps: the batches; every pair that is not at fault is in one of them.
        skip_faulty: pairs at fault are left out, and scores may be not finite.
    """

    call: Call
    pairs: TokenizedPairs
    table: Table
    steps: tuple[Step, ...]
    skip_faulty: bool

    @property
    def faults(self) -> Mapping[int, str]:
        """Why a pair cannot be scored, by its index."""
        return self.pairs.faults

    @property
    def tokens(self) -> np.ndarray:
        """int32 [pairs], tokens of each pair; 0 where it is at fault."""
        return self.pairs.lengths

    @property
    def truncated(self) -> np.ndarray:
        """bool [pairs], whether the query or the passage of a pair was cut."""
        return self.pairs.truncated

    def __len__(self) -> int:
        return len(self.pairs)


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
        mesh: sizes of the mesh's axes, as "data=4,model=2"; see `flax_rerank.sharding.make_mesh`. The batch is split
            over "data", the parameters over "model"; by default all devices are on "data".
        sharding_rules: which axes of the parameters are split.
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
        ValueError: `max_length` above the model's positions; an embedding model; a contradiction of dtypes; a mesh
            that devices or heads do not divide over.
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
        mesh: MeshShape,
        sharding_rules: ShardingRules,
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

        self.mesh = make_mesh(devices, mesh)
        self.sharding_rules = sharding_rules
        self._platform = self.mesh.devices.flat[0].platform
        self.dtype = choose_dtype(dtype, use_fp16=use_fp16, use_bf16=use_bf16, platform=self._platform)
        self._open(cache_dir)
        self._scorer = Scorer(self.model, self.mesh)
        self._tables: tuple[Table, ...] = ()
        self._template(self._lengths(None, None))

    def _open(self, cache_dir: str | None) -> None:
        """Read the checkpoint: its config.json, tokenizer and model."""
        folder = local_folder(self.model_name_or_path, cache_dir)
        self.source_config = convert.read_config(folder)
        self.tokenizer = Tokenizer.from_folder(folder)
        self.model = self._load_model(folder, cache_dir)

    def _config_overrides(self) -> dict[str, Any]:
        """Fields of the model's config that the class decides."""
        return {}

    def _adapter(self, cache_dir: str | None) -> Path | None:
        """The folder of an adapter to merge into the weights."""
        return None

    def _load_model(self, folder: Path, cache_dir: str | None) -> nnx.Module:
        config = self.source_config

        def shardings(module: nnx.Module) -> Mapping[str, NamedSharding]:
            return parameter_shardings(module, self.mesh, self.sharding_rules)

        if checkpoint.is_flax_config(config):
            if self._adapter(cache_dir) is not None:
                raise ValueError(f"an adapter is merged at conversion: {folder} is converted already")
            checkpoint.require_known_format(folder, config)
            self.source_config = config["source_config"]
            if config["model_class"] != self.model_class:
                raise ValueError(
                    f"{folder} is a {config['model_class']} reranker, {type(self).__name__} takes {self.model_class}"
                )
            self._source = checkpoint.read_source(folder)
            return checkpoint.load_model(folder, config, self.dtype, shardings, **self._config_overrides())
        return self._open_torch(folder, cache_dir).load(self.dtype, shardings)

    def _open_torch(self, folder: Path, cache_dir: str | None) -> convert.TorchCheckpoint:
        """The PyTorch checkpoint in `folder`, matched with the module that this class makes of it."""
        named = convert.model_class_of(self.source_config)
        if named not in (None, self.model_class):
            raise ValueError(f"{folder} is a {named} reranker, {type(self).__name__} takes {self.model_class}")
        self._source = checkpoint.describe_source(self.model_name_or_path, folder)
        return convert.open_checkpoint(folder, adapter=self._adapter(cache_dir), **self._config_overrides())

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a Flax checkpoint, from which `from_finetuned(path)` loads without PyTorch's files, with the arguments
        for scoring (prompt, lengths, instructions, layers) that this reranker was made with.

        Raises:
            FileExistsError: `path` is there and `overwrite` is False.
            OSError: the disk is full, or `path` cannot be written to.
        """
        checkpoint.save(
            Path(path),
            self.model,
            self.tokenizer,
            model_class=self.model_class,
            scoring=scoring_arguments(self),
            source_config=self.source_config,
            source=self._source,
            overwrite=overwrite,
        )

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a Hugging Face folder (config.json, safetensors, tokenizer), which transformers and FlagEmbedding load
        as it is.

        Its tensors are the model's, with a merged adapter and in the dtype that was loaded; in the smaller one of the
        source's config.json where that holds every value.

        Raises:
            FileExistsError: `path` is there and may not be replaced.
            ValueError: the model has one row of an untied head, and was not loaded from a Flax checkpoint that was
                converted with --keep-head.
        """
        folder = Path(self.model_name_or_path).expanduser()
        tensors = TorchTensors(ModuleParameters(self.model), self.model, self.source_config, folder)
        export(Path(path), tensors, self.source_config, self.tokenizer.files, overwrite=overwrite)

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

    @abstractmethod
    def _resolve(self, **overrides: Any) -> Call:
        """The arguments of `compute_score`, with the constructor's in place of those that are None."""

    def prepare(
        self,
        sentence_pairs: Pairs,
        *,
        table: Table | None = None,
        skip_faulty: bool = False,
        show_progress_bar: bool = False,
        **overrides: Any,
    ) -> Prepared:
        """The host's part of scoring: tokenise pairs and plan steps. Needs no device, so it may run ahead in a thread.

        Args:
            sentence_pairs: as for `compute_score`.
            table: the shapes of steps, such as those of an earlier `Prepared`: the same pairs and the same table
                give the same scores to the last bit. Longer pairs than it has shapes for get one of their own. By
                default chosen for these pairs.
            skip_faulty: leave out pairs that cannot be scored, see `Prepared.faults`.
            show_progress_bar: show one.
            overrides: arguments of `compute_score`.

        Raises:
            TypeError: a pair that is not two strings, named by its index; an override that there is not.
            ValueError: as `compute_score`.
        """
        call = self._resolve(**overrides)
        pairs = tokenize(
            as_pairs(sentence_pairs),
            self.tokenizer,
            call.template,
            query_instruction=self.query_instruction,
            passage_instruction=self.passage_instruction,
            skip_faulty=skip_faulty,
            show_progress_bar=show_progress_bar,
        )
        return self._plan(call, pairs, table, skip_faulty)

    def _plan(self, call: Call, pairs: TokenizedPairs, table: Table | None, skip_faulty: bool) -> Prepared:
        lengths = pairs.lengths
        sound = np.flatnonzero(lengths)
        if len(sound) == 0:
            return Prepared(call, pairs, table or (), (), skip_faulty)
        lengths = lengths[sound]
        budget = call.batch_size * call.lengths.max_length
        most = max_step_tokens(self._platform, self.model.config.hidden_size)
        planner = Planner(call.template.max_tokens, budget, self._scorer.row_multiple, most)
        if table is None:
            table = planner.choose(lengths, self._tables)
            if table not in self._tables:
                self._tables = (table, *self._tables)
        table = planner.covering(table, lengths)
        steps = tuple(Step(sound[step.pairs], step.shape) for step in planner.steps(lengths, table))
        return Prepared(call, pairs, table, steps, skip_faulty)

    def run(self, prepared: Prepared, *, show_progress_bar: bool = False) -> RerankOutput:
        """The devices' part of scoring.

        Returns:
            As `score`. NaN for pairs at fault.

        Raises:
            FloatingPointError: a score is not finite, unless `prepared.skip_faulty`.
            MemoryError: a step of the fewest rows does not fit into the devices' memory.
        """
        output = self._execute(prepared, show_progress_bar)
        scores = output.scores.astype(np.float32)
        layers = prepared.call.layers
        if layers is None:
            return replace(output, scores=scores[:, 0])
        return replace(output, scores={layer: scores[:, column] for column, layer in enumerate(layers)})

    def warmup(self, prepared: Prepared) -> float:
        """Compile steps of all shapes of `prepared.table`, also of those that these pairs need none of.

        Returns:
            Seconds it took.
        """
        start = time.perf_counter()
        options = prepared.call.options(prepared.pairs, [shape.length for shape in prepared.table])
        self._scorer.warmup(prepared.table, options)
        return time.perf_counter() - start

    def _execute(self, prepared: Prepared, show_progress_bar: bool) -> RerankOutput:
        """Scores are float64 [pairs, outputs] here: sigmoids of large logits stay apart."""
        call, pairs, steps = prepared.call, prepared.pairs, prepared.steps
        if steps:
            scores = self._scorer(
                pairs,
                steps,
                call.options(pairs, [shape.length for shape in prepared.table]),
                show_progress_bar=show_progress_bar,
            ).astype(np.float64)[:, list(call.outputs)]
            # The same pair in steps of two shapes differs by rounding: all take the score of the first, so that ties
            # stay.
            key = pairs.query_index * len(pairs.texts) + pairs.passage_index
            _, first, same = np.unique(key, return_index=True, return_inverse=True)
            scores = scores[first[same]]
            scores[list(pairs.faults)] = np.nan
        else:
            scores = np.full((len(pairs), len(call.outputs)), np.nan)
        if not prepared.skip_faulty:
            _require_finite(scores)
        if call.normalize:
            scores = sigmoid(scores)
        tokens = pairs.lengths
        computed = computed_tokens(steps)
        return RerankOutput(
            scores=scores,
            tokens=tokens,
            truncated=pairs.truncated,
            steps=len(steps),
            shapes=tuple(sorted({step.shape for step in steps})),
            computed_tokens=computed,
            padding_tokens=computed - int(tokens.sum()),
        )

    def _compute_score(self, sentence_pairs: Pairs, show_progress_bar: bool | None, **overrides: Any) -> list[Any]:
        pairs = as_pairs(sentence_pairs)
        show = self._shows_progress(len(pairs), show_progress_bar, overrides["batch_size"])
        prepared = self.prepare(pairs, show_progress_bar=show, **overrides)
        columns = self._execute(prepared, show).scores.T.tolist()
        return columns[0] if len(columns) == 1 else columns

    def _score(self, sentence_pairs: Pairs, show_progress_bar: bool | None, **overrides: Any) -> RerankOutput:
        pairs = as_pairs(sentence_pairs)
        show = self._shows_progress(len(pairs), show_progress_bar, overrides["batch_size"])
        return self.run(self.prepare(pairs, show_progress_bar=show, **overrides), show_progress_bar=show)

    def _shows_progress(self, pairs: int, asked: bool | None, batch_size: int | None) -> bool:
        asked = self.show_progress_bar if asked is None else asked
        return pairs > (batch_size or self.batch_size) if asked is None else asked

    def _batch_size(self, batch_size: int | None) -> int:
        batch_size = self.batch_size if batch_size is None else batch_size
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        return batch_size

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


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow. In float64, large scores keep their order."""
    return np.exp(-np.logaddexp(0.0, -logits))


def _require_finite(scores: np.ndarray) -> None:
    bad = ~np.isfinite(scores).all(axis=1)
    if bad.any():
        pair = int(np.argmax(bad))
        raise FloatingPointError(
            f"the score of pair {pair} is {scores[pair].tolist()}, and {int(bad.sum())} of {len(bad)} are not finite: "
            "are the weights sound, and does dtype='float32' help?"
        )
