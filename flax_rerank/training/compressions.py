"""Token compression while a lightweight reranker is trained: drawn anew for each step."""

from collections.abc import Sequence
from itertools import product

import numpy as np

from flax_rerank.models.compression import Compression
from flax_rerank.training.step import Batch

# Each pair of a compression and a length of the inputs is a program of its own.
MOST = 8
# Compressed lengths are rounded up to eighths of the inputs' length, so that few batches need a program more.
PARTS = 8

Choice = tuple[tuple[int, ...], int]


class Compressions:
    """Which layers compress, and how much, in each step: each layer in half of the steps, with one of the ratios, as
    in Li et al., 2024. Of more than `MOST` choices, as many are drawn once, and a step takes one of these.

    Args:
        layers: after how many layers passages can be compressed.
        ratios: passage tokens that become one.
        suffix_length: tokens after the passage.
        seed: of all draws.
    """

    def __init__(self, layers: Sequence[int], ratios: Sequence[int], suffix_length: int, seed: int) -> None:
        subsets = [
            tuple(layer for layer, used in zip(sorted(layers), uses, strict=True) if used)
            for uses in product((False, True), repeat=len(layers))
        ]
        choices: list[Choice] = [(subset, ratio) for subset in subsets for ratio in ratios]
        if len(choices) > MOST:
            drawn = np.random.default_rng(seed).choice(len(choices), MOST, replace=False)
            choices = [choices[index] for index in sorted(drawn)]
        self._choices, self._suffix_length, self._seed = choices, suffix_length, seed

    def at(self, step: int, batch: Batch) -> Compression | None:
        """The compression of a step and its batch; None for none."""
        layers, ratio = self._choices[np.random.default_rng((self._seed, step)).integers(len(self._choices))]
        if ratio == 1 or not layers:
            return None
        length = batch.input_ids.shape[-1]
        grid = max(length // PARTS, 1)
        tokens, starts = batch.lengths.astype(np.int64), batch.passage_starts.astype(np.int64)
        at = []
        for layer in layers:
            passages = np.maximum(tokens - starts - self._suffix_length, 0)
            tokens = tokens - passages + -(-passages // ratio)
            at.append((layer, min(-(-int(tokens.max()) // grid) * grid, length)))
        return Compression(tuple(at), ratio, self._suffix_length)
