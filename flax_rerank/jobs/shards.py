"""From a shard of the input to its files in the job's folder: read, score, write. Every engine does these three."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, NamedTuple

import numpy as np

from flax_rerank.batching import Table
from flax_rerank.jobs import files
from flax_rerank.jobs.folder import write_json, write_rejects
from flax_rerank.jobs.job import Job
from flax_rerank.jobs.rows import Reject, Row, Shard
from flax_rerank.rerankers import AbsReranker, Prepared, RerankOutput

Marker = Mapping[str, Any]


class PreparedShard(NamedTuple):
    """A shard that is ready for the devices."""

    shard: Shard
    rows: list[Row]
    rejects: list[Reject]
    prepared: Prepared


class ScoredShard(NamedTuple):
    """A shard that is ready to be written; `rows` and `scores` are without the rejected ones."""

    shard: Shard
    rows: list[Row]
    scores: Mapping[str, np.ndarray]
    rejects: list[Reject]
    counts: Mapping[str, Any]


class ShardScorer:
    """Scores shards of a job with one reranker.

    Args:
        job: the job.
        reranker: the reranker.
        table: the shapes of the job's batches.
        load_seconds: what it took to load the reranker.
    """

    def __init__(self, job: Job, reranker: AbsReranker, table: Table, load_seconds: float) -> None:
        self._job = job
        self._reranker = reranker
        self._table = table
        # Each process puts what it took to start into the marker of its first shard, so that a sum has it once.
        self._once = {"load": load_seconds, "warmup": 0.0}
        self._warm = not job.warmup
        self._devices = f"{reranker.mesh.size} x {reranker.mesh.devices.flat[0].device_kind}"

    def prepare(self, shard: Shard, cancelled: Callable[[], bool] = lambda: False) -> PreparedShard:
        """Read and tokenise. Needs no device, so it may run ahead in a thread.

        Raises:
            ValueError: a row that cannot be scored, in a strict job, as "file:line: reason".
            CancelledError: `cancelled` said so between two rows.
        """
        rows: list[Row] = []
        rejects: list[Reject] = []
        for row in self._job.source.read(shard):
            if cancelled():
                raise CancelledError
            if isinstance(row, Row):
                rows.append(row)
            else:
                rejects.append(row)
                if self._job.strict:
                    break  # a row before it may turn out to be the first at fault
        pairs = [(row.query, row.passage) for row in rows]
        prepared = self._reranker.prepare(pairs, table=self._table, skip_faulty=True)
        rejects += [_reject(shard, rows[index], reason) for index, reason in sorted(prepared.faults.items())]
        self._refuse(rejects)
        return PreparedShard(shard, rows, rejects, prepared)

    def score(self, ready: PreparedShard, show_progress_bar: bool = False) -> ScoredShard:
        """Run the devices.

        Raises:
            FloatingPointError: no score of the shard is finite, or one is not in a strict job.
        """
        shard, rows, rejects, prepared = ready
        if not self._warm and prepared.table:
            self._once["warmup"] = self._reranker.warmup(prepared)
            self._warm = True
        start = time.perf_counter()
        output = self._reranker.run(prepared, show_progress_bar=show_progress_bar)
        seconds = time.perf_counter() - start
        columns = columns_of(output)
        finite = np.all([np.isfinite(scores) for scores in columns.values()], axis=0)
        scorable = np.ones(len(rows), bool)
        scorable[list(prepared.faults)] = False
        if scorable.any() and not finite.any():
            raise FloatingPointError(
                f"{shard.file}: no score of the rows from line {shard.first} on is finite: are the weights sound, and "
                "does --dtype float32 help?"
            )
        rejects = [
            *rejects,
            *(_reject(shard, rows[i], "its score is not finite") for i in np.flatnonzero(scorable & ~finite)),
        ]
        self._refuse(rejects)
        counts = {
            "truncated": int(output.truncated[finite].sum()),
            "tokens": int(output.tokens.sum()),
            "computed_tokens": output.computed_tokens,
            "steps": output.steps,
            "shapes": [list(shape) for shape in output.shapes],
            "seconds": {**self._once, "score": seconds},
            "devices": self._devices,
        }
        self._once = {"load": 0.0, "warmup": 0.0}
        return ScoredShard(
            shard,
            [row for row, good in zip(rows, finite, strict=True) if good],
            {name: scores[finite] for name, scores in columns.items()},
            sorted(rejects, key=lambda reject: reject.number),
            counts,
        )

    def write(self, scored: ScoredShard) -> Marker:
        """Write the part, the rejects, and last the marker. Whatever dies in between, the shard is then done again."""
        folder, index = self._job.files, scored.shard.index
        self._job.format.write(folder.part(index), scored.rows, scored.scores)
        if scored.rejects:
            write_rejects(folder.rejects(index), scored.rejects)
        marker = {
            "shard": index,
            "rows": len(scored.rows),
            "rejects": len(scored.rejects),
            **scored.counts,
        }
        write_json(folder.marker(index, files.size(folder.part(index))), marker)
        return marker

    def _refuse(self, rejects: Sequence[Reject]) -> None:
        if self._job.strict and rejects:
            first = min(rejects, key=lambda reject: reject.number)
            raise ValueError(f"{first.file}:{first.number}: {first.reason}")


def columns_of(output: RerankOutput) -> dict[str, np.ndarray]:
    """Scores by the name of their field: "score", or "score_8", "score_16", ... for several cutoff layers."""
    by_layer = output.scores if isinstance(output.scores, dict) else {None: output.scores}
    return {"score" if len(by_layer) == 1 else f"score_{layer}": scores for layer, scores in by_layer.items()}


def _reject(shard: Shard, row: Row, reason: str) -> Reject:
    return Reject(shard.file, row.number, reason)
