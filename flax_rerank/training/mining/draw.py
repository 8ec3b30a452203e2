"""Which passages may become the negatives of a query, in the order in which they are taken."""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from flax_rerank.training.mining.candidates import Candidates
from flax_rerank.training.mining.examples import Example, same
from flax_rerank.training.mining.settings import SCORED, MiningSettings

# Passages drawn to fill up, for each that is wanted: some are not allowed.
TRIES = 4


def draw(example: Example, candidates: Candidates, keys: Sequence[str], settings: MiningSettings) -> list[str]:
    """Draw the negatives of a query, or the passages that its teacher is to score. Equal lines of equal files with the
    same seed give the same.

    Args:
        example: the line.
        candidates: where they come from.
        keys: those of all passages of the pool.
        settings: how many are drawn, and from where.

    Returns:
        Their texts: first those from the ranks of `range_for_sampling`, then those that fill up.
    """
    wanted = settings.negative_number
    if settings.teacher is not None:
        wanted = settings.candidate_number or SCORED * wanted
    if wanted == 0:
        return []
    random = np.random.default_rng([settings.seed, example.line])
    found = candidates.find(example, settings.ranks.stop)
    banned = set(map(same, (example.query, *example.pos, *(example.neg if settings.keep_negatives else ()))))
    window = [key for key in [*found.ranked][settings.ranks] if key not in banned]
    if settings.teacher is None:
        window = [key for key in window if settings.accepts(found.ranked[key], found.positives)]
    if settings.sampling_strategy == "random":
        window = [window[place] for place in random.permutation(len(window))]
    drawn = window[:wanted]
    if settings.fill:
        # Not what ranks before the window: it may well be relevant.
        banned |= {*drawn, *islice(found.ranked, settings.ranks.stop)}
        drawn += islice(_others(keys, banned, random, wanted), wanted - len(drawn))
    return [candidates.texts[key] for key in drawn]


def _others(keys: Sequence[str], banned: set[str], random: np.random.Generator, wanted: int) -> Iterator[str]:
    """Passages drawn at random, each once."""
    tries = TRIES * wanted + len(banned)
    places = random.permutation(len(keys)) if len(keys) <= tries else random.integers(len(keys), size=tries)
    for place in places:
        if keys[place] not in banned:
            banned.add(keys[place])
            yield keys[place]
