"""TREC runs: passages by query, best first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flax_rerank.jobs import files
from flax_rerank.jobs.rows import Row

TAG = "flax-rerank"


@dataclass(frozen=True)
class TrecFormat:
    """Lines of "qid Q0 docid rank score tag" (.gz, .zst or neither), for rows whose record has qid and docid.

    Queries keep their order. Within one, the highest score comes first, ties as the rows came; ranks start at 1. All
    rows of a query must be in one part, as those of a TREC run are.

    Args:
        tag: the name of the run.

    Raises:
        ValueError: a tag that is not one word.
    """

    tag: str = TAG
    suffix: str = ".trec"

    def __post_init__(self) -> None:
        if len(self.tag.split()) != 1 or self.tag != self.tag.strip():
            raise ValueError(f"the tag {self.tag!r} is not one word")

    def write(self, path: str, rows: Sequence[Row], scores: Mapping[str, np.ndarray]) -> None:
        """See `Format`.

        Raises:
            ValueError: more than one score, or a row without qid and docid.
        """
        if len(scores) != 1:
            raise ValueError(f"a TREC run has one score, not {', '.join(scores)}: give one cutoff layer")
        (values,) = scores.values()
        queries: dict[str, list[tuple[float, str]]] = {}
        for row, score in zip(rows, values.tolist(), strict=True):
            if "qid" not in row.record or "docid" not in row.record:
                raise ValueError(f"row {row.number} has no qid and docid: a TREC run is made from a TREC run")
            queries.setdefault(row.record["qid"], []).append((score, row.record["docid"]))
        with files.open_output(path) as sink:
            for qid, passages in queries.items():
                passages.sort(key=lambda passage: -passage[0])
                for rank, (score, docid) in enumerate(passages, start=1):
                    sink.write(f"{qid} Q0 {docid} {rank} {score!r} {self.tag}\n".encode())

    def join(self, parts: Sequence[str], path: str) -> None:
        """See `Format`."""
        files.concatenate(parts, path)
