"""BM25 over a corpus in memory, by bm25s (extra `evaluate`)."""

import logging
import re
from collections.abc import Iterable, Mapping

import numpy as np

K1, B = 1.2, 0.75  # Lucene's
# Thai, Lao, Burmese, Khmer, Japanese and Chinese put no spaces between words.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
)
# Accents and vowels that stand on a letter, which \w leaves out: Latin's, Hebrew's, Arabic's, India's.
MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0970-\u0dff"
TERMS = re.compile(rf"[{UNSPACED}]+|(?:[^\W{UNSPACED}]|[{MARKS}])+")
UNSPACED_TERM = re.compile(f"[{UNSPACED}]")


class BM25:
    """An index of passages.

    Terms are words in lower case, without a list of stop words and without stemming; in scripts that put no spaces
    between words they are pairs of characters.

    Raises ImportError if bm25s is not installed, and ValueError if no passage has a term.
    """

    def __init__(self, passages: Mapping[str, str]) -> None:
        """Index the texts of passages, which are given by their ids."""
        try:
            import bm25s
        except ImportError as error:
            raise ImportError("BM25 needs bm25s; install flax-rerank[evaluate]") from error
        found = [terms(text) for text in passages.values()]
        if not any(found):
            raise ValueError("BM25 finds nothing: no passage has a word")
        self.ids = [*passages]
        self._places = {docid: place for place, docid in enumerate(self.ids)}
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # bm25s sets DEBUG
        self._index = bm25s.BM25(k1=K1, b=B)
        self._index.index(found, show_progress=False)

    def scores(self, query: str) -> np.ndarray:
        """The scores of all passages, in order; float32."""
        known = [term for term in terms(query) if term in self._index.vocab_dict]
        if not known:
            return np.zeros(len(self.ids), np.float32)
        return self._index.get_scores(known)

    def scores_of(self, scores: np.ndarray, ids: Iterable[str]) -> dict[str, float]:
        """Those of some passages among `scores`. Raises KeyError for a passage that is not indexed."""
        return {docid: float(scores[self._places[docid]]) for docid in ids}

    def best(self, scores: np.ndarray, top_k: int) -> dict[str, float]:
        """The passages of the best `scores`, best first. Of equal scores, the earlier passage comes first. Passages
        that share no term with the query are left out."""
        found = np.flatnonzero(scores > 0)
        if len(found) > top_k:
            least = np.partition(scores[found], -top_k)[-top_k]
            found = found[scores[found] >= least]
        order = found[np.argsort(-scores[found], kind="stable")][:top_k]
        return {self.ids[place]: float(scores[place]) for place in order}


def terms(text: str) -> list[str]:
    """The terms of a text, in order."""
    found: list[str] = []
    for word in TERMS.findall(text.lower()):
        if len(word) > 1 and UNSPACED_TERM.match(word):
            found += [word[place : place + 2] for place in range(len(word) - 1)]
        else:
            found.append(word)
    return found
