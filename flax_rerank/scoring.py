"""Compile and run a plan on a mesh."""

import logging
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from flax_rerank.batching import Shape, Step
from flax_rerank.dtypes import DTypes
from flax_rerank.models.compression import Compression
from flax_rerank.models.decoder import KeysValues, Prefix
from flax_rerank.models.readout import Readout
from flax_rerank.out_of_memory import is_out_of_memory
from flax_rerank.sharding import DATA, over_data, replicated, spans_processes
from flax_rerank.text.pairs import TokenizedPairs

logger = logging.getLogger(__name__)

IN_FLIGHT = 4
# A server runs for months: of its programs those that were not used for longest are forgotten.
MOST_PROGRAMS = 128

Params = dict[str, jax.Array]
Static = tuple[Readout, Compression | None]
Batch = tuple[np.ndarray, ...]
# Keys and values of a block of prefixes, and how many tokens each has.
Front = tuple[KeysValues, jax.Array]


class Scorer:
    """Scores batches with the parameters that it is given, on one mesh. Safe to call from several threads.

    The step is jitted over the flat parameters: flattening a module on every call costs more than dispatching the
    step, and closing over weights would put them into every program as constants. The parameters stay where they are:
    on the mesh, sharded or not.

    Args:
        module: the model, abstract or not; its own parameters are not used.
        mesh: the devices.
        dtypes: those of the model.

    Attributes:
        budget: tokens that a step may compute, once a larger one did not fit into memory; None before.
    """

    def __init__(self, module: nnx.Module, mesh: Mesh, dtypes: DTypes) -> None:
        graphdef, state = nnx.split(module)
        paths = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(state)]
        treedef = jax.tree.structure(state)
        # float32 means float32: TPUs and GPUs multiply in less by default.
        precision = "highest" if dtypes.computed == np.float32 else None

        def apply(params: Params, batch: tuple[Any, ...], shape: Shape, static: Static) -> Any:
            readout, compression = static
            model: Any = nnx.merge(graphdef, jax.tree.unflatten(treedef, [params[path] for path in paths]))
            # The mesh tells the model which devices it is traced for.
            with jax.default_matmul_precision(precision), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                if not shape.rows:
                    return model.keys_values(*batch, readout=readout), batch[1]
                return model(*batch, readout=readout, compression=compression)

        self._apply = apply
        self._programs: OrderedDict[tuple[Shape, Static], Callable[..., jax.Array]] = OrderedDict()
        self._lock = threading.Lock()
        self._batch_sharding = over_data(mesh)
        self._spans_processes = spans_processes(mesh)
        # The host can put the rows together itself where it reaches all devices: no collective for that.
        self._out = replicated(mesh) if self._spans_processes else over_data(mesh)
        self.mesh = mesh
        self.row_multiple = mesh.shape[DATA]
        self.budget: int | None = None

    def __call__(
        self,
        params: Params,
        pairs: TokenizedPairs,
        steps: Sequence[Step],
        static: Callable[[Shape], Static],
        *,
        show_progress_bar: bool = False,
    ) -> tuple[np.ndarray, list[Step]]:
        """Run the steps; the host runs ahead of the devices by a few steps.

        A step that does not fit into memory is cut in two, and so are all later ones of its size.

        Args:
            params: the model's parameters, by their dotted paths.
            pairs: what the steps index into.
            steps: a plan that covers every pair at most once.
            static: the model's static arguments for steps of a given shape; each set is compiled on its own.

        Returns:
            float32 [pairs, outputs of the model], in the order of `pairs`, NaN for pairs in none of the steps; and the
            steps that were run.

        Raises:
            MemoryError: a step of the fewest rows does not fit into memory.
        """
        left = deque(steps)
        fronts: dict[int, Front] = {}
        waiting: deque[tuple[Step, jax.Array]] = deque()
        done: list[tuple[Step, np.ndarray]] = []

        def fetch() -> None:
            step, result = waiting.popleft()
            try:
                rows = np.asarray(result)
            except jax.errors.JaxRuntimeError as error:
                left.extendleft(reversed(self._halve(step, error)))
                return
            done.append((step, rows[: len(step.pairs)]))
            bar.update(len(step.pairs))

        total = sum(len(step.pairs) for step in steps)
        with tqdm(total=total, desc="Scoring", unit="pair", leave=None, disable=not show_progress_bar) as bar:
            while left or waiting:
                if not left or len(waiting) > IN_FLIGHT:
                    fetch()
                    continue
                step = left.popleft()
                if self._too_large(step.shape):
                    left.extendleft(reversed(step.halves(self.row_multiple)))
                    continue
                try:
                    front = self.front(params, pairs, step, static(step.shape), fronts)
                    result = self._dispatch(params, make_batch(pairs, step), static(step.shape), front)
                except jax.errors.JaxRuntimeError as error:
                    left.extendleft(reversed(self._halve(step, error)))
                    continue
                waiting.append((step, result))
        outputs = done[0][1].shape[1] if done else 0
        scores = np.full((len(pairs), outputs), np.nan, np.float32)
        for step, rows in done:
            scores[step.pairs] = rows
        return scores, [step for step, _ in done]

    def warmup(self, params: Params, shapes: Sequence[Shape], static: Callable[[Shape], Static]) -> None:
        """Compile steps of these shapes, several at a time, and run each once on empty rows."""

        def run(shape: Shape) -> None:
            step = Step(np.zeros(0, np.int64), shape)
            while self._too_large(step.shape):
                step = step.halves(self.row_multiple)[0]
            try:
                front = self._front(params, empty_prefixes(shape), static(shape)) if shape.prefixes else None
                self._dispatch(params, empty_batch(step.shape), static(shape), front).block_until_ready()
            except jax.errors.JaxRuntimeError as error:
                self._halve(step, error)
                run(shape)

        # Programs over several processes must start in the same order in each of them.
        workers = 1 if self._spans_processes else min(len(shapes), os.cpu_count() or 1)
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            list(pool.map(run, shapes))

    def trace(self, params: Mapping[str, Any], shape: Shape, static: Static) -> jax.stages.Traced:
        """The step of a shape without prefixes as it would run, for looking at or compiling. Parameters and mesh may
        be abstract: shapes without values, devices that are not there."""
        batch = tuple(
            jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=self._batch_sharding)
            for array in empty_batch(shape)
        )
        return self._program(shape, static).trace(dict(params), batch)

    def _program(self, shape: Shape, static: Static) -> Any:
        """The jitted step for one shape and one set of static arguments; of a shape without rows, its prefixes."""
        key = shape, static
        with self._lock:
            if key not in self._programs:

                def step(params: Params, batch: tuple[Any, ...]) -> Any:
                    return self._apply(params, batch, shape, static)

                # Nothing is donated: ids, the only input of size, are int32 [rows, length], and no result is of that
                # size.
                self._programs[key] = jax.jit(step, out_shardings=self._out if shape.rows else replicated(self.mesh))
            self._programs.move_to_end(key)
            while len(self._programs) > MOST_PROGRAMS:
                self._programs.popitem(last=False)
            return self._programs[key]

    def front(
        self, params: Params, pairs: TokenizedPairs, step: Step, static: Static, kept: dict[int, Front]
    ) -> Front | None:
        """The prefixes that rows of a step begin with; None for none.

        Args:
            kept: those of the step before, which may be the same; those of this step afterwards.
        """
        if pairs.prefixes is None:
            return None
        block = pairs.prefixes.block(step.pairs[0], step.shape.prefixes)
        if block not in kept:
            kept.clear()
            kept[block] = self._front(params, make_prefixes(pairs, block, step.shape), static)
        return kept[block]

    def _front(self, params: Params, batch: Batch, static: Static) -> Front:
        return self._program(Shape(0, 0, 0, *batch[0].shape), static)(params, self._place(batch))

    def _dispatch(self, params: Params, batch: Batch, static: Static, front: Front | None = None) -> jax.Array:
        placed: tuple[Any, ...] = self._place(batch)
        shape = Shape(*batch[0].shape)
        if front is not None:
            seen, lengths = front
            placed = *placed[:3], Prefix(seen, lengths, of_row=placed[3])
            shape = shape._replace(prefixes=seen.key.shape[1], prefix_length=seen.key.shape[2])
        return self._program(shape, static)(params, placed)

    def _place(self, batch: Batch) -> tuple[jax.Array, ...]:
        if not self._spans_processes:
            return jax.device_put(batch, self._batch_sharding)
        return tuple(
            jax.make_array_from_callback(array.shape, self._batch_sharding, array.__getitem__) for array in batch
        )

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
            step.shape.rows,
            step.shape.length,
            self.budget,
        )
        return step.halves(self.row_multiple)


def empty_batch(shape: Shape) -> Batch:
    """The model's inputs for a step without pairs: ids [rows, length], lengths [rows], passage starts [rows]; and with
    prefixes, which of them each row begins with, [rows].

    Every row has one token, id 0.
    """
    ones = np.ones(shape.rows, np.int32)
    of_row = (np.zeros(shape.rows, np.int32),) if shape.prefixes else ()
    return np.zeros((shape.rows, shape.length), np.int32), ones, ones.copy(), *of_row


def make_batch(pairs: TokenizedPairs, step: Step) -> Batch:
    """The model's inputs for one step; rows without a pair are as in `empty_batch`."""
    input_ids, lengths, passage_starts, *of_row = empty_batch(step.shape)
    shared = np.zeros(len(step.pairs), np.int32)
    if pairs.prefixes is not None:
        prefix = pairs.prefixes.of_pair[step.pairs]
        shared = pairs.prefixes.lengths[prefix]
        of_row[0][: len(prefix)] = prefix % step.shape.prefixes
    for row, pair in enumerate(step.pairs):
        ids = pairs.ids(pair)[shared[row] :]
        input_ids[row, : len(ids)] = ids
        lengths[row] = len(ids)
    passage_starts[: len(step.pairs)] = pairs.passage_starts[step.pairs] - shared
    return input_ids, lengths, passage_starts, *of_row


def empty_prefixes(shape: Shape) -> Batch:
    """The model's inputs for no prefixes: ids [prefixes, length], lengths [prefixes]."""
    return np.zeros((shape.prefixes, shape.prefix_length), np.int32), np.zeros(shape.prefixes, np.int32)


def make_prefixes(pairs: TokenizedPairs, block: int, shape: Shape) -> Batch:
    """The model's inputs for a block of prefixes, with padding on the left."""
    assert pairs.prefixes is not None
    input_ids, lengths = empty_prefixes(shape)
    first = block * shape.prefixes
    some = slice(first, first + shape.prefixes)
    for row, (pair, length) in enumerate(zip(pairs.prefixes.first[some], pairs.prefixes.lengths[some], strict=True)):
        input_ids[row, shape.prefix_length - length :] = pairs.ids(pair)[:length]
        lengths[row] = length
    return input_ids, lengths
