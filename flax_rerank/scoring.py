"""Compile and run a plan on a mesh."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from flax_rerank.batching import Step
from flax_rerank.pairs import TokenizedPairs
from flax_rerank.sharding import DATA, over_data, replicated

IN_FLIGHT = 4

Options = tuple[tuple[str, Any], ...]


class Scorer:
    """One model on one mesh, compiled once per shape. Safe to call from several threads.

    The step is jitted over the flat leaves of the model: flattening a module on every call costs more than
    dispatching the step, and closing over weights would put them into every program as constants.
    """

    def __init__(self, model: nnx.Module, mesh: Mesh) -> None:
        graphdef, state = nnx.split(model)
        leaves, treedef = jax.tree.flatten(state)
        self._leaves = tuple(jax.device_put(leaf, replicated(mesh)) for leaf in leaves)
        self._batch_sharding = over_data(mesh)
        # float32 means float32: TPUs and GPUs multiply in less by default. It changes nothing in bfloat16.
        precision = "highest" if all(leaf.dtype == np.float32 for leaf in leaves) else None

        def step(leaves: Sequence[jax.Array], batch: tuple[jax.Array, ...], options: Options) -> jax.Array:
            with jax.default_matmul_precision(precision):
                return nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))(*batch, **dict(options))

        self._step = jax.jit(step, static_argnames="options", out_shardings=replicated(mesh))
        self.mesh = mesh
        self.row_multiple = mesh.shape[DATA]

    def __call__(
        self,
        pairs: TokenizedPairs,
        steps: Sequence[Step],
        options: Callable[[int], Mapping[str, Any]] = lambda length: {},
        *,
        show_progress_bar: bool = False,
    ) -> np.ndarray:
        """Run the steps; the host runs ahead of the devices by a few steps.

        Args:
            pairs: what the steps index into.
            steps: a plan that covers every pair once.
            options: keyword arguments of the model for steps of a given length; hashable, since each set is
                compiled on its own.

        Returns:
            float32 [pairs, outputs of the model], in the order of `pairs`.

        Raises:
            FloatingPointError: a score is not finite; names the first such pair.
        """
        waiting: deque[tuple[Step, jax.Array]] = deque()
        scores: list[np.ndarray | None] = [None] * len(pairs)

        def fetch() -> None:
            step, result = waiting.popleft()
            for pair, row in zip(step.pairs, np.asarray(result), strict=False):
                scores[pair] = row
            bar.update(len(step.pairs))

        with tqdm(total=len(pairs), desc="Scoring", unit="pair", leave=None, disable=not show_progress_bar) as bar:
            for step in steps:
                batch = jax.device_put(make_batch(pairs, step), self._batch_sharding)
                waiting.append((step, self._step(self._leaves, batch, tuple(options(step.shape.length).items()))))
                if len(waiting) > IN_FLIGHT:
                    fetch()
            while waiting:
                fetch()
        result = np.stack(scores)
        bad = ~np.isfinite(result).all(axis=1)
        if bad.any():
            pair = int(np.argmax(bad))
            raise FloatingPointError(
                f"the score of pair {pair} is {result[pair].tolist()}, and {int(bad.sum())} of {len(bad)} are not "
                "finite: are the weights sound, and does dtype='float32' help?"
            )
        return result


def make_batch(pairs: TokenizedPairs, step: Step) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The model's inputs for one step: ids [rows, length], lengths [rows], passage starts [rows].

    Rows without a pair have one token, id 0.
    """
    input_ids = np.zeros(step.shape, np.int32)
    lengths = np.ones(step.shape.rows, np.int32)
    passage_starts = np.ones(step.shape.rows, np.int32)
    for row, pair in enumerate(step.pairs):
        ids = pairs.ids(pair)
        input_ids[row, : len(ids)] = ids
        lengths[row] = len(ids)
    passage_starts[: len(step.pairs)] = pairs.passage_starts[step.pairs]
    return input_ids, lengths, passage_starts
