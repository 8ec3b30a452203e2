"""Where negatives come from: passages ranked for each query, by BM25 or by a TREC run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from flax_rerank.evaluation.bm25 import BM25
from flax_rerank.evaluation.texts import texts_by_id
from flax_rerank.evaluation.trec import read_run
from flax_rerank.training.mining.examples import Example, read_pool, same
from flax_rerank.training.mining.settings import MiningSettings


@dataclass(frozen=True)
class Found:
    """What a search found for a query. Passages are named by their keys, see `examples.same`.

    Attributes:
        ranked: the scores of the best passages, best first.
        positives: the scores of the query's positives, those that are known.
    """

    ranked: Mapping[str, float]
    positives: list[float]


class Candidates(Protocol):
    """A pool of passages."""

    @property
    def texts(self) -> Mapping[str, str]:
        """Their texts by key, so that no two are the same."""
        ...

    def find(self, example: Example, depth: int) -> Found:
        """The best passages of a query, `depth` at most."""
        ...


def open_candidates(settings: MiningSettings, examples: Sequence[Example]) -> Candidates:
    """The candidates that the settings name. Raises ValueError for a line at fault, as "path:line: reason"."""
    if settings.run is not None and settings.queries is not None and settings.corpus is not None:
        return RankedPool(settings.run, settings.queries, settings.corpus)
    passages = [text for example in examples for text in (*example.pos, *example.neg)]
    if settings.candidate_pool is not None:
        passages = [*read_pool(settings.candidate_pool), *(text for example in examples for text in example.pos)]
    return SearchedPool(passages)


class SearchedPool:
    """Passages that BM25 searches."""

    def __init__(self, passages: Iterable[str]) -> None:
        self.texts: Mapping[str, str] = _by_key(passages)
        self._index = BM25(self.texts)

    def find(self, example: Example, depth: int) -> Found:
        """The best passages; one that shares no word with the query is not found. All positives have scores."""
        scores = self._index.scores(example.query)
        positives = self._index.scores_of(scores, map(same, example.pos))
        return Found(self._index.best(scores, depth), [*positives.values()])


class RankedPool:
    """The passages of a TREC run, whose queries are known by their texts."""

    def __init__(self, run: str, queries: str, corpus: str) -> None:
        """Read the run. Raises ValueError for a line at fault, and for a passage of the run without text."""
        ranked = read_run(run)
        wanted = {docid for scores in ranked.values() for docid in scores}
        passages = texts_by_id(corpus, titles=True, wanted=wanted)
        if len(passages) < len(wanted):
            first = min(wanted - passages.keys())
            raise ValueError(
                f"{corpus} has no text for {len(wanted) - len(passages)} passages of {run}: {first!r}, ..."
            )
        self.texts: Mapping[str, str] = _by_key(passages.values())
        self._ranked: dict[str, dict[str, float]] = {}
        for qid, text in texts_by_id(queries, titles=False).items():
            found = self._ranked.setdefault(same(text), {})
            for docid, score in ranked.get(qid, {}).items():
                found.setdefault(same(passages[docid]), score)

    def find(self, example: Example, depth: int) -> Found:
        """The best passages that the run has for the query; none for a query that it does not have."""
        ranked = self._ranked.get(same(example.query), {})
        positives = [ranked[key] for key in map(same, example.pos) if key in ranked]
        return Found(dict(islice(ranked.items(), depth)), positives)


def _by_key(passages: Iterable[str]) -> dict[str, str]:
    """The first of the passages that are the same, by key."""
    texts: dict[str, str] = {}
    for text in passages:
        texts.setdefault(same(text), text)
    return texts
