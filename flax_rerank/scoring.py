"""Compile and run a plan on a mesh."""

import logging
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from flax_rerank.batching import Shape, Step
from flax_rerank.out_of_memory import is_out_of_memory
from flax_rerank.pairs import TokenizedPairs
from flax_rerank.sharding import DATA, over_data, replicated, spans_processes

logger = logging.getLogger(__name__)

IN_FLIGHT = 4

Options = tuple[tuple[str, Any], ...]
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


class Scorer:
    """One model on one mesh, compiled once per shape. Safe to call from several threads.

    The step is jitted over the flat leaves of the model: flattening a module on every call costs more than
    dispatching the step, and closing over weights would put them into every program as constants. The parameters
    stay where they are: on the mesh, sharded or not.

    Attributes:
        budget: tokens that a step may compute, once a larger one did not fit into memory; None before.
    """

    def __init__(self, model: nnx.Module, mesh: Mesh) -> None:
        graphdef, state = nnx.split(model)
        leaves, treedef = jax.tree.flatten(state)
        self._leaves = tuple(leaves)
        self._batch_sharding = over_data(mesh)
        self._spans_processes = spans_processes(mesh)
        # float32 means float32: TPUs and GPUs multiply in less by default. It changes nothing in bfloat16.
        precision = "highest" if all(leaf.dtype == np.float32 for leaf in leaves) else None

        def step(leaves: Sequence[jax.Array], batch: tuple[jax.Array, ...], options: Options) -> jax.Array:
            # The mesh tells the model which devices it is traced for.
            with jax.default_matmul_precision(precision), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))(*batch, **dict(options))

        # The host can put the rows together itself where it reaches all devices: no collective for that.
        out = replicated(mesh) if self._spans_processes else over_data(mesh)
        # Nothing is donated: ids, the only input of size, are int32 [rows, length], and no result is of that size.
        self._step = jax.jit(step, static_argnames="options", out_shardings=out)
        self.mesh = mesh
        self.row_multiple = mesh.shape[DATA]
        self.budget: int | None = None

    def __call__(
        self,
        pairs: TokenizedPairs,
        steps: Sequence[Step],
        options: Callable[[int], Mapping[str, Any]] = lambda length: {},
        *,
        show_progress_bar: bool = False,
    ) -> np.ndarray:
        """Run the steps; the host runs ahead of the devices by a few steps.

        A step that does not fit into memory is cut in two, and so are all later ones of its size.

        Args:
            pairs: what the steps index into.
            steps: a plan that covers every pair at most once.
            options: keyword arguments of the model for steps of a given length; hashable, since each set is
                compiled on its own.

        Returns:
            float32 [pairs, outputs of the model], in the order of `pairs`; NaN for pairs in none of the steps.

        Raises:
            MemoryError: a step of the fewest rows does not fit into memory.
        """
        left = deque(steps)
        waiting: deque[tuple[Step, jax.Array]] = deque()
        scores: dict[int, np.ndarray] = {}

        def fetch() -> None:
            step, result = waiting.popleft()
            try:
                rows = np.asarray(result)
            except jax.errors.JaxRuntimeError as error:
                left.extendleft(reversed(self._halve(step, error)))
                return
            scores.update(zip(step.pairs.tolist(), rows, strict=False))
            bar.update(len(step.pairs))

        with tqdm(total=len(pairs), desc="Scoring", unit="pair", leave=None, disable=not show_progress_bar) as bar:
            while left or waiting:
                if not left or len(waiting) > IN_FLIGHT:
                    fetch()
                    continue
                step = left.popleft()
                if self._too_large(step.shape):
                    left.extendleft(reversed(step.halves(self.row_multiple)))
                    continue
                try:
                    result = self._dispatch(make_batch(pairs, step), options(step.shape.length))
                except jax.errors.JaxRuntimeError as error:
                    left.extendleft(reversed(self._halve(step, error)))
                    continue
                waiting.append((step, result))
        outputs = next(iter(scores.values())).shape if scores else (0,)
        result = np.full((len(pairs), *outputs), np.nan, np.float32)
        for pair, row in scores.items():
            result[pair] = row
        return result

    def warmup(self, shapes: Sequence[Shape], options: Callable[[int], Mapping[str, Any]] = lambda length: {}) -> None:
        """Compile steps of these shapes, several at a time, and run each once on empty rows."""

        def run(shape: Shape) -> None:
            step = Step(np.zeros(0, np.int64), shape)
            while self._too_large(step.shape):
                step = step.halves(self.row_multiple)[0]
            try:
                self._dispatch(empty_batch(step.shape), options(shape.length)).block_until_ready()
            except jax.errors.JaxRuntimeError as error:
                self._halve(step, error)
                run(shape)

        # Programs over several processes must start in the same order in each of them.
        workers = 1 if self._spans_processes else min(len(shapes), os.cpu_count() or 1)
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            list(pool.map(run, shapes))

    def trace(self, shape: Shape, options: Mapping[str, Any]) -> jax.stages.Traced:
        """The step of a shape as it would run, for looking at or compiling. Model and mesh may be abstract: parameters
        without values, devices that are not there."""
        batch = tuple(
            jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=self._batch_sharding)
            for array in empty_batch(shape)
        )
        return self._step.trace(self._leaves, batch, tuple(options.items()))

    def _dispatch(self, batch: Batch, options: Mapping[str, Any]) -> jax.Array:
        if self._spans_processes:
            placed = tuple(
                jax.make_array_from_callback(array.shape, self._batch_sharding, array.__getitem__) for array in batch
            )
        else:
            placed = jax.device_put(batch, self._batch_sharding)
        return self._step(self._leaves, placed, tuple(options.items()))

    def _too_large(self, shape: Shape) -> bool:
        return self.budget is not None and shape.tokens > self.budget and shape.rows > self.row_multiple

    def _halve(self, step: Step, error: jax.errors.JaxRuntimeError) -> list[Step]:
        """The two halves of a step that did not fit into memory; any other error is raised."""
        # Processes that share a mesh run the same steps: one of them cannot cut its own.
        if not is_out_of_memory(error) or self._spans_processes:
            raise error
        if step.shape.rows <= self.row_multiple:
            raise MemoryError(
                f"a step of {step.shape.rows} x {step.shape.length} tokens does not fit into the memory of the "
                f"devices: lower max_length, or split the model over more devices (mesh='model=2')"
            ) from error
        self.budget = min(step.shape.tokens // 2, self.budget or step.shape.tokens)
        logger.warning(
            "a step of %d x %d tokens does not fit into memory; from now on steps have %d tokens at the most",
            *step.shape,
            self.budget,
        )
        return step.halves(self.row_multiple)


def empty_batch(shape: Shape) -> Batch:
    """The model's inputs for a step without pairs: ids [rows, length], lengths [rows], passage starts [rows].

    Every row has one token, id 0.
    """
    return np.zeros(shape, np.int32), np.ones(shape.rows, np.int32), np.ones(shape.rows, np.int32)


def make_batch(pairs: TokenizedPairs, step: Step) -> Batch:
    """The model's inputs for one step; rows without a pair are as in `empty_batch`."""
    input_ids, lengths, passage_starts = empty_batch(step.shape)
    for row, pair in enumerate(step.pairs):
        ids = pairs.ids(pair)
        input_ids[row, : len(ids)] = ids
        lengths[row] = len(ids)
    passage_starts[: len(step.pairs)] = pairs.passage_starts[step.pairs]
    return input_ids, lengths, passage_starts
