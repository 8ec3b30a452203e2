"""What a user can set about mining."""

import os
import re
from dataclasses import MISSING, dataclass
from typing import Literal

from flax_rerank.settings import setting

RANGE = re.compile(r"(\d+)-(\d+)")
# Passages that the teacher scores for each negative that is wanted: some score too high.
SCORED = 3


@dataclass(frozen=True, kw_only=True)
class MiningSettings:
    """The settings of `mine`; `flax-rerank mine --help` explains each.

    `candidate_pool`, `range_for_sampling` and `negative_number` mean what they mean in FlagEmbedding's hn_mine.py, and
    `sampling_strategy`, the margins, `max_score` and `min_score` what they mean in sentence-transformers'
    `mine_hard_negatives`.

    Raises ValueError for a value out of range, or settings that contradict each other.
    """

    input: str = setting(
        MISSING, 'training data, JSON lines of query, pos (a list of texts) and neg if there is one (.gz, .zst)',
        metavar="FILE",
    )  # fmt: skip
    output: str = setting(
        MISSING, "the same lines with neg, and pos_scores and neg_scores if there is a teacher; .jsonl (.gz, .zst)",
        metavar="FILE",
    )  # fmt: skip

    candidate_pool: str | None = setting(
        None, "passages to search by BM25, JSON lines of text (and title); by default all passages of the input",
        metavar="FILE",
    )  # fmt: skip
    run: str | None = setting(None, "a TREC run with passages for each query, in place of BM25", metavar="FILE")
    queries: str | None = setting(None, "the texts of the run's queries, .jsonl (BEIR) or .tsv", metavar="FILE")
    corpus: str | None = setting(None, "the texts of the run's passages, .jsonl (BEIR) or .tsv", metavar="FILE")

    range_for_sampling: str = setting(
        "10-210", "ranks that negatives come from: the first counts from 0, the second is left out", metavar="FROM-TO"
    )
    negative_number: int = setting(15, "negatives for each query", metavar="N")
    sampling_strategy: Literal["random", "top"] = setting(
        "random", "draw from the ranks at random, or take those of the highest scores"
    )
    fill: bool = setting(True, "leave queries that have too few passages in these ranks with fewer negatives; by "
                               "default passages drawn at random are added")  # fmt: skip
    keep_negatives: bool = setting(False, "keep the negatives of the input and add to them")
    seed: int = setting(42, "of all that is drawn", metavar="N")

    absolute_margin: float | None = setting(
        None, "a negative scores at least this much below each positive of its query", metavar="X"
    )
    relative_margin: float | None = setting(
        None, "a negative scores below each positive's score p by at least this share of |p|", metavar="X"
    )
    max_score: float | None = setting(None, "the highest score of a negative", metavar="X")
    min_score: float | None = setting(None, "the lowest score of a negative", metavar="X")
    allow_false_positives: bool = setting(
        False, "take negatives that the teacher scores as high as a positive or higher"
    )

    teacher: str | None = setting(
        None, "a reranker whose scores are added to the lines and, in place of the search's, decide about margins: a "
        "folder (PyTorch or Flax), or a name on the Hugging Face hub", metavar="MODEL",
    )  # fmt: skip
    candidate_number: int | None = setting(
        None, f"passages that the teacher scores for each query; by default {SCORED} times negative_number",
        metavar="N",
    )  # fmt: skip
    overwrite: bool = setting(False, "start over, even if the output exists")
    shard_rows: int = setting(10_000, "pairs that the teacher scores between two points to go on from", metavar="N")
    show_progress_bar: bool | None = setting(
        None, "show no progress bars; by default they are shown on a terminal", flag="--no-progress"
    )

    def __post_init__(self) -> None:
        for name in ("input", "output", "candidate_pool", "run", "queries", "corpus"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, os.fspath(getattr(self, name)))
        for name, least in {"negative_number": 0, "seed": 0, "candidate_number": 1, "shard_rows": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        found = RANGE.fullmatch(self.range_for_sampling)
        if found is None or int(found[1]) >= int(found[2]):
            raise ValueError(f"range_for_sampling is {self.range_for_sampling!r}; it must be like 10-210")
        texts = (self.queries is not None) + (self.corpus is not None)
        if texts != (0 if self.run is None else 2):
            raise ValueError("run, queries and corpus belong together: give all three or none")
        if self.run is not None and self.candidate_pool is not None:
            raise ValueError("give candidate_pool (to search by BM25) or run, and not both")
        if self.allow_false_positives and (self.absolute_margin, self.relative_margin) != (None, None):
            raise ValueError("a margin keeps false positives out: give it or allow_false_positives, and not both")
        if self.teacher is None and self.candidate_number is not None:
            raise ValueError("candidate_number is of a teacher: give one")
        if self.negative_number == 0 and (self.teacher is None or not self.keep_negatives):
            raise ValueError("negative_number is 0: give a teacher and keep_negatives, so that scores are added")

    @property
    def ranks(self) -> slice:
        """The ranks of `range_for_sampling`."""
        return slice(*map(int, self.range_for_sampling.split("-")))

    def accepts(self, score: float, positives: list[float]) -> bool:
        """Whether a passage of this score may be a negative.

        Args:
            score: the teacher's, or the search's if there is no teacher.
            positives: the scores of the query's positives, those that are known.
        """
        if self.max_score is not None and score > self.max_score:
            return False
        if self.min_score is not None and score < self.min_score:
            return False
        margins = (self.absolute_margin, self.relative_margin)
        # A search is no judge of what is relevant, unless it is asked to be.
        if self.allow_false_positives or (self.teacher is None and margins == (None, None)):
            return True
        absolute, relative = (margin or 0.0 for margin in margins)
        return all(score < p and score <= p - absolute and score <= p - relative * abs(p) for p in positives)
