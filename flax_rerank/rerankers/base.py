"""What all rerankers have in common: loading, scoring, ranking, saving."""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from flax_rerank.batching import FIT_FROM, Planner, Step, Table, computed_tokens, max_step_tokens
from flax_rerank.compile_cache import use_compile_cache
from flax_rerank.dtypes import DTypes, choose_dtype, stored_dtype
from flax_rerank.field_types import fits
from flax_rerank.params import load_arrays, shape_faults, shapes_of, with_params
from flax_rerank.rerankers.call import Call, resolve
from flax_rerank.rerankers.prefixes import prefix_shapes, share_as_planned, share_prefixes
from flax_rerank.rerankers.prepared import Prepared, RerankOutput
from flax_rerank.saving import save, save_pretrained
from flax_rerank.scoring import Scorer
from flax_rerank.settings import RerankerModelClass, Settings
from flax_rerank.sharding import make_mesh, parameter_shardings
from flax_rerank.spec import Spec, open_spec
from flax_rerank.text.pairs import TokenizedPairs, as_pairs, tokenize

Pairs = Sequence[Sequence[str]] | Sequence[str]

# Tables of shapes that were fitted to large calls are kept for later ones.
MOST_TABLES = 8


class AbsReranker(ABC):
    """A reranker: a `Spec`, its parameters, and the mesh that they are on.

    Attributes:
        spec: all that is known of the model but its weights.
        settings: what the constructor was given, and the checkpoint's settings where it was given none.
        params: the parameters, by their dotted paths. What is changed here counts at the next call and in `save`.
        mesh: the devices.
        dtypes: those of the parameters and the computation.
    """

    model_class: ClassVar[str]

    spec: Spec
    settings: Settings
    params: dict[str, jax.Array]
    mesh: Mesh
    dtypes: DTypes

    @abstractmethod
    def __init__(self, model_name_or_path: str, **settings: Any) -> None: ...

    @classmethod
    def from_spec(
        cls,
        spec: Spec,
        params: Mapping[str, jax.Array] | None = None,
        mesh: Mesh | None = None,
        dtypes: DTypes | None = None,
    ) -> Self:
        """A reranker of a spec.

        Args:
            spec: of this class's kind.
            params: the parameters, on the mesh; read from the spec's checkpoint by default.
            mesh: the devices; by default what the spec's settings say.
            dtypes: those of the model, such as float32 parameters computed in bfloat16; by default what the spec's
                settings say.

        Raises:
            CheckpointError: weights that do not fit the config.
            ValueError: a spec of another kind, or settings that do not fit the model or the devices.
        """
        if spec.model_class.value != cls.model_class:
            raise ValueError(
                f"{cls.__name__} takes a spec of the kind {cls.model_class}, not {spec.model_class.value}"
            )
        reranker = cls.__new__(cls)
        reranker._assemble(spec, params, mesh, dtypes)
        return reranker

    def _open(self, name: str, settings: Mapping[str, Any]) -> None:
        self._assemble(open_spec(name, RerankerModelClass(self.model_class), **settings))

    def _assemble(
        self,
        spec: Spec,
        params: Mapping[str, jax.Array] | None = None,
        mesh: Mesh | None = None,
        dtypes: DTypes | None = None,
    ) -> None:
        settings = spec.settings
        self.spec = spec
        self.settings = settings
        if settings.compile_cache is not None:
            use_compile_cache(settings.compile_cache)
        self.mesh = make_mesh(settings.devices, settings.mesh) if mesh is None else mesh
        self._platform = self.mesh.devices.flat[0].platform
        self.dtypes = dtypes or choose_dtype(
            settings.dtype, use_fp16=settings.use_fp16, use_bf16=settings.use_bf16, platform=self._platform
        )
        resolve(spec, settings)
        self._module = spec.module(self.dtypes)
        self._shapes = shapes_of(self._module)
        shardings = parameter_shardings(self._module, self.mesh, settings.sharding_rules)
        if params is None:
            params = load_arrays(spec.weights(self._module), self.dtypes.stored, shardings)
        self.params = dict(params)
        self._present_params()
        self._scorer = Scorer(self._module, self.mesh, self.dtypes)
        self._tables: tuple[Table, ...] = ()
        self._process = os.getpid()

    @property
    def model(self) -> nnx.Module:
        """The model with the present parameters, as an nnx module of its own."""
        return with_params(self._module, self._present_params())

    def _present_params(self) -> dict[str, jax.Array]:
        """A copy of the parameters, which are those of the model.

        Raises:
            ValueError: one is missing, left over or has another shape.
        """
        params = dict(self.params)
        faults = shape_faults({path: array.shape for path, array in params.items()}, self._shapes, "parameter")
        if faults:
            raise ValueError(f"params are not those of the model: {'; '.join(faults)}")
        return params

    @property
    def dtype(self) -> np.dtype:
        """The dtype that the model computes in."""
        return self.dtypes.computed

    @abstractmethod
    def compute_score(self, sentence_pairs: Pairs, /, *args: Any, **overrides: Any) -> list[Any]:
        """Score pairs of query and passage.

        Args:
            sentence_pairs: one pair of strings, or a sequence of pairs.
            overrides: settings for this call, in place of the constructor's.

        Returns:
            One float per pair, in order: logits, or with `normalize` their sigmoids or calibrated probabilities.
            Always a list. For several cutoff layers a list of these for each, in the order asked.

        Raises:
            TypeError: a pair that is not two strings, named by its index; an argument that does not exist.
            ValueError: `max_length` above the model's positions; a layer without a head, or another setting that does
                not fit the model; a pair that cannot be encoded or has no room for its passage, named by its index.
            FloatingPointError: a score is not finite.
        """

    @abstractmethod
    def score(self, sentence_pairs: Pairs, /, *args: Any, **overrides: Any) -> RerankOutput:
        """As `compute_score`, with numpy scores, tokens and truncation of each pair, and counts."""

    def rank(
        self,
        query: str,
        passages: Iterable[str],
        top_k: int | None = None,
        return_documents: bool = True,
        **overrides: Any,
    ) -> list[dict[str, Any]]:
        """Order passages by their score for a query, as sentence-transformers' `CrossEncoder.rank` does.

        Args:
            query: the query.
            passages: what to rank.
            top_k: how many to return, at least 1; None for all.
            return_documents: give the text of each passage too.
            overrides: arguments of `compute_score`.

        Returns:
            Best first, ties in the order of `passages`: dicts with `corpus_id` (position in `passages`),
            `score`, and `text` if `return_documents`.

        Raises:
            TypeError: passages that have no order, or one that is not a string.
            ValueError: more than one cutoff layer, or `top_k` below 1.
        """
        # An array without axes has __iter__, and raises in it.
        iterable = isinstance(passages, Iterable) and getattr(passages, "ndim", 1) > 0
        if not iterable or isinstance(passages, str | bytes | Mapping | Set):
            raise TypeError(f"passages is a {type(passages).__name__}; it must be a sequence of strings")
        if not fits(top_k, int | None):
            raise TypeError(f"top_k is {top_k!r}; it must be int or None")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}; it must be at least 1, or None for all")
        passages = list(passages)
        scores = self.compute_score([(query, passage) for passage in passages], **overrides)
        if scores and not isinstance(scores[0], float):
            raise ValueError("rank takes the scores of one layer: give one cutoff layer")
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[:top_k]
        results: list[dict[str, Any]] = [{"corpus_id": index, "score": scores[index]} for index in order]
        if return_documents:
            for result in results:
                result["text"] = passages[result["corpus_id"]]
        return results

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
                give the same scores to the last bit, and no step has another shape. Longer pairs than it has shapes
                for get one of their own. By default chosen for these pairs.
            skip_faulty: leave out pairs that cannot be scored, see `Prepared.faults`.
            show_progress_bar: show one.
            overrides: arguments of `compute_score`.

        Raises:
            TypeError: a pair that is not two strings, named by its index; an argument that does not exist.
            ValueError: as `compute_score`.
        """
        call = resolve(self.spec, self.settings.override(**overrides))
        return self._prepare(as_pairs(sentence_pairs), call, table, skip_faulty, show_progress_bar)

    def run(self, prepared: Prepared, *, show_progress_bar: bool = False) -> RerankOutput:
        """The devices' part of scoring.

        Returns:
            As `score`. NaN for pairs at fault.

        Raises:
            FloatingPointError: a score is not finite, unless `prepared.skip_faulty`.
            MemoryError: a step of the fewest rows does not fit into the devices' memory.
        """
        scores, steps = self._run(prepared, show_progress_bar)
        layers = prepared.call.layers
        pairs, distinct = prepared.pairs, np.unique(prepared.computed)
        computed = computed_tokens(steps) + sum(shape.tokens for shape in prefix_shapes(pairs, steps))
        return RerankOutput(
            scores=scores[:, 0] if layers is None else {layer: scores[:, i] for i, layer in enumerate(layers)},
            tokens=prepared.tokens,
            truncated=prepared.truncated,
            steps=len(steps),
            shapes=tuple(sorted({step.shape for step in steps})),
            computed_tokens=computed,
            padding_tokens=computed - pairs.tokens_of(distinct),
        )

    def warmup(self, prepared: Prepared) -> float:
        """Compile steps of all shapes of `prepared.table`, also of those that these pairs do not need.

        Returns:
            Seconds it took.
        """
        start = time.perf_counter()
        self._scorer.warmup(self._present_params(), prepared.table, prepared.call.static)
        return time.perf_counter() - start

    def save(self, path: str | Path, *, dtype: str | None = None, overwrite: bool = False) -> None:
        """Write a Flax checkpoint, from which `from_finetuned(path)` loads without PyTorch's files, with the settings
        of the model (prompt, lengths, instructions, layers) that this reranker has.

        Args:
            path: the folder to make.
            dtype: of the parameters: "float32", "bfloat16" or "int8", see `flax_rerank.quantization`; by default that
                which was loaded.
            overwrite: replace an existing Flax checkpoint.

        Raises:
            FileExistsError: `path` is there and `overwrite` is False.
            OSError: the disk is full, or `path` cannot be written to.
        """
        stored = None if dtype is None else stored_dtype(dtype)
        params = self._present_params()
        save(Path(path), self.spec, self.settings, self._module, params, dtype=stored, overwrite=overwrite)

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
        save_pretrained(Path(path), self.spec, self._present_params(), overwrite=overwrite)

    def push_to_hub(self, repo_id: str, *, pytorch: bool = False, **options: Any) -> str:
        """Upload the model to the Hugging Face hub, with a model card.

        Args:
            repo_id: the repository, as "name/model". It is made if it does not exist.
            pytorch: upload what `save_pretrained` writes, not what `save` writes.
            options: `private`, `revision`, `message`, `token` and `endpoint` of `flax_rerank.saving.push.push_folder`.

        Returns:
            The address of the commit.

        Raises:
            HubError: the hub refuses or cannot be reached.
            And as `save` or `save_pretrained`.
        """
        from flax_rerank.saving.push import push_folder

        with TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            (self.save_pretrained if pytorch else self.save)(path)
            return push_folder(path, repo_id, model_class=self.model_class, **options)

    def _compute_score(self, sentence_pairs: Pairs, overrides: Mapping[str, Any]) -> list[Any]:
        prepared, show = self._prepare_call(sentence_pairs, overrides)
        columns = self._run(prepared, show)[0].T.tolist()
        return columns[0] if len(columns) == 1 else columns

    def _score(self, sentence_pairs: Pairs, overrides: Mapping[str, Any]) -> RerankOutput:
        prepared, show = self._prepare_call(sentence_pairs, overrides)
        return self.run(prepared, show_progress_bar=show)

    def _prepare_call(self, sentence_pairs: Pairs, overrides: Mapping[str, Any]) -> tuple[Prepared, bool]:
        settings = self.settings.override(**overrides)
        call = resolve(self.spec, settings)
        pairs = as_pairs(sentence_pairs)
        asked = settings.show_progress_bar
        show = len(pairs) > settings.batch_size if asked is None else asked
        return self._prepare(pairs, call, None, False, show), show

    def _prepare(
        self, pairs: list[tuple[str, str]], call: Call, table: Table | None, skip_faulty: bool, show: bool
    ) -> Prepared:
        self._require_own_process()
        settings = call.settings
        tokenized = tokenize(
            pairs,
            self.spec.tokenizer,
            call.template,
            query_instruction=settings.query_instruction,
            passage_instruction=settings.passage_instruction,
            skip_faulty=skip_faulty,
            show_progress_bar=show,
        )
        most = max_step_tokens(self._platform, self.spec.config.hidden_size)
        prepared = plan(call, tokenized, table, self._tables, self._scorer.row_multiple, most, skip_faulty)
        fitted = table is None and sum(len(step.pairs) for step in prepared.steps) >= FIT_FROM
        if fitted and prepared.table not in self._tables:
            self._tables = (prepared.table, *self._tables)[:MOST_TABLES]
        return prepared

    def _require_own_process(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError(
                "this reranker was loaded before the process was forked, and its devices and threads are not there "
                "any more: load it after the fork, or start processes by multiprocessing's spawn"
            )

    def _run(self, prepared: Prepared, show_progress_bar: bool) -> tuple[np.ndarray, list[Step]]:
        """Scores, float64 [pairs, outputs], and the steps that were run."""
        outputs = list(prepared.call.outputs)
        scores = np.full((len(prepared), len(outputs)), np.nan)
        rows, steps = self._run_rows(prepared, show_progress_bar)
        scores[prepared.scored] = rows[:, outputs]
        return self._finish(scores, prepared), steps

    def _run_rows(self, prepared: Prepared, show_progress_bar: bool) -> tuple[np.ndarray, list[Step]]:
        """What the model gives for each of `prepared.scored`, float32, and the steps that were run."""
        call, pairs = prepared.call, prepared.pairs
        if not prepared.steps:
            return np.zeros((0, len(call.outputs)), np.float32), []
        rows, steps = self._scorer(
            self._present_params(), pairs, prepared.steps, call.static, show_progress_bar=show_progress_bar
        )
        return rows[prepared.computed], steps

    def _finish(self, scores: np.ndarray, prepared: Prepared) -> np.ndarray:
        """Scores [pairs, outputs] as the user sees them."""
        if not prepared.skip_faulty:
            _require_finite(scores)
        settings = prepared.call.settings
        if not settings.normalize:
            return scores
        if settings.normalize == "calibrated":
            assert settings.calibration is not None  # else the call was refused
            return settings.calibration(scores)
        return self.spec.prompt_format.normalized(scores)


def plan(
    call: Call,
    pairs: TokenizedPairs,
    table: Table | None,
    known: Sequence[Table],
    row_multiple: int,
    max_step_tokens: int,
    skip_faulty: bool = False,
) -> Prepared:
    """Cut tokenised pairs into steps; equal pairs are computed once.

    Args:
        table: the shapes of the steps; by default chosen for these pairs.
        known: tables of earlier calls, one of which may serve as well.
        row_multiple: rows of a step are a multiple of this, the devices on the mesh's data axis.
        max_step_tokens: tokens of a step on each device at the most.
    """
    scored, first, same = pairs.distinct()
    if len(scored) == 0:
        return Prepared(call, pairs, table or (), (), skip_faulty, scored, scored)
    lengths, around = pairs.lengths[first], call.around(pairs)[first]
    budget = call.settings.batch_size * call.settings.max_length
    planner = Planner(call.template.max_tokens, budget, row_multiple, max_step_tokens, call.most_around)
    if table is not None and table[0].prefixes:
        pairs, table, steps = share_as_planned(planner, pairs, first, table, call)
    else:
        fixed = table is not None
        unshared = [each for each in known if not each[0].prefixes]
        table = planner.choose(lengths, unshared, around) if table is None else table
        table = planner.covering(table, lengths, around)
        steps = [Step(first[step.pairs], step.shape) for step in planner.steps(lengths, table, around, fixed=fixed)]
        if not fixed:
            pairs, table, steps = share_prefixes(planner, (pairs, table, steps), first, known, call)
    return Prepared(call, pairs, table, tuple(steps), skip_faulty, scored, first[same])


def _require_finite(scores: np.ndarray) -> None:
    bad = ~np.isfinite(scores).all(axis=1)
    if bad.any():
        pair = int(np.argmax(bad))
        raise FloatingPointError(
            f"the score of pair {pair} is {scores[pair].tolist()}, and {int(bad.sum())} of {len(bad)} are not finite: "
            "check the weights, or try dtype='float32'"
        )
