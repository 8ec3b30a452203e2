"""Pairs that are ready to be scored, and the scores that come of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flax_rerank.batching import Shape, Step, Table
from flax_rerank.rerankers.call import Call
from flax_rerank.text.pairs import TokenizedPairs


@dataclass(frozen=True)
class Prepared:
    """Pairs, tokenised and planned; nothing is computed yet.

    Attributes:
        table: the shapes that the steps are of.
        steps: the batches; of equal pairs that can be scored, the first is in one of them.
        skip_faulty: pairs at fault are left out, and scores may be not finite.
        scored: int64, the pairs that can be scored.
        computed: int64, for each of these the equal pair that is computed.
    """

    call: Call
    pairs: TokenizedPairs
    table: Table
    steps: tuple[Step, ...]
    skip_faulty: bool
    scored: np.ndarray
    computed: np.ndarray

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


@dataclass(frozen=True)
class RerankOutput:
    """Scores, and what it took to compute them.

    Attributes:
        scores: float64 [pairs], in the order of the pairs; for rerankers with cutoff layers a dict from layer to
            these. Logits are float32 values; sigmoids of large logits stay apart.
        tokens: int32 [pairs], tokens of each pair with instructions, prompt and special tokens.
        truncated: bool [pairs], whether the query or the passage of a pair was cut.
        steps: batches run.
        shapes: the distinct ones among them.
        computed_tokens: rows times length, over all steps and all blocks of prefixes. Equal pairs are computed once.
        padding_tokens: those of them that belong to no pair.
    """

    scores: np.ndarray | dict[int, np.ndarray]
    tokens: np.ndarray
    truncated: np.ndarray
    steps: int
    shapes: tuple[Shape, ...]
    computed_tokens: int
    padding_tokens: int
