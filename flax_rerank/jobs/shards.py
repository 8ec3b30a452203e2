"""From a shard of the input to its files in the job's folder: read, score, write. Every engine does these three."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, NamedTuple

import numpy as np

from flax_rerank.batching import Table
from flax_rerank.jobs import files
from flax_rerank.jobs.formats import json_line
from flax_rerank.jobs.job import Job, write_json
from flax_rerank.jobs.rows import Reject, Row, Shard
from flax_rerank.rerankers import Prepared, RerankOutput

Marker = Mapping[str, Any]


class PreparedShard(NamedTuple):
    """A shard that is ready for the devices."""

    shard: Shard
    rows: list[Row]
    rejects: list[Reject]
    prepared: Prepared


class ScoredShard(NamedTuple):
    """A shard that is ready to be written; `rows` and `scores` are without the rejected ones."""

    rows: list[Row]
    scores: Mapping[str, np.ndarray]
    rejects: list[Reject]
    marker: Marker
    file: str  # of the input


class ShardScorer:
    """Loads the reranker of a job and scores shards with it."""

    table: Table = ()  # the shapes of the job's batches, to be set before `prepare`; see `manifest.begin`

    def __init__(self, job: Job) -> None:
        start = time.perf_counter()
        self.reranker = job.load()
        self._job = job
        # The marker of a process's first shard has what it took to start, so that the sum over markers has it once.
        self._once = {"load": time.perf_counter() - start, "warmup": 0.0}
        self._warm = not job.warmup

    def prepare(self, shard: Shard, cancelled: Callable[[], bool] = lambda: False) -> PreparedShard:
        """Read and tokenise. Needs no device, so it can run ahead in a thread.

        Raises:
            ValueError: a row that cannot be scored, in a strict job, as "file:line: reason".
            CancelledError: `cancelled` returned True between two rows.
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
                    break  # a row before it can turn out to be the first at fault
        pairs = [(row.query, row.passage) for row in rows]
        prepared = self.reranker.prepare(pairs, table=self.table, skip_faulty=True)
        rejects += [Reject(shard.file, rows[index].number, reason) for index, reason in prepared.faults.items()]
        self._refuse(rejects)
        return PreparedShard(shard, rows, rejects, prepared)

    def score(self, ready: PreparedShard, show_progress_bar: bool = False) -> ScoredShard:
        """Run the devices. Raises FloatingPointError if no score of the shard is finite; ValueError as `prepare`."""
        shard, rows, rejects, prepared = ready
        if not self._warm and prepared.table:
            self._once["warmup"] = self.reranker.warmup(prepared)
            self._warm = True
        start = time.perf_counter()
        output = self.reranker.run(prepared, show_progress_bar=show_progress_bar)
        seconds = {**self._once, "score": time.perf_counter() - start}
        self._once = {"load": 0.0, "warmup": 0.0}
        columns = columns_of(output)
        finite = np.all([np.isfinite(scores) for scores in columns.values()], axis=0)
        scorable = np.ones(len(rows), bool)
        scorable[list(prepared.faults)] = False
        if scorable.any() and not finite.any():
            raise FloatingPointError(
                f"{shard.file}: no score of the rows from line {shard.first} on is finite: check the weights, or try "
                "--dtype float32"
            )
        not_finite = [rows[index].number for index in np.flatnonzero(scorable & ~finite)]
        rejects = [*rejects, *(Reject(shard.file, number, "its score is not finite") for number in not_finite)]
        self._refuse(rejects)
        mesh = self.reranker.mesh
        marker = {
            "shard": shard.index,
            "rows": int(finite.sum()),
            "rejects": len(rejects),
            "truncated": int(output.truncated[finite].sum()),
            "tokens": int(output.tokens.sum()),
            "computed_tokens": output.computed_tokens,
            "steps": output.steps,
            "shapes": [list(shape) for shape in output.shapes],
            "seconds": seconds,
            "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        }
        return ScoredShard(
            [row for row, good in zip(rows, finite, strict=True) if good],
            {name: scores[finite] for name, scores in columns.items()},
            sorted(rejects, key=lambda reject: reject.number),
            marker,
            shard.file,
        )

    def write(self, scored: ScoredShard) -> Marker:
        """Write the part, the rejects, and last the marker, without which the shard is scored again.

        Raises ValueError for a row that the format cannot hold, by file and row.
        """
        job, shard = self._job, scored.marker["shard"]
        try:
            job.format.write(job.part(shard), scored.rows, scored.scores)
        except ValueError as error:
            raise ValueError(f"{scored.file}: {error}") from error
        if scored.rejects:
            with files.open_output(job.rejects(shard)) as sink:
                for file, line, reason in scored.rejects:
                    sink.write(json_line({"file": file, "line": line, "reason": reason}))
        write_json(job.marker(shard, files.size(job.part(shard))), scored.marker)
        return scored.marker

    def _refuse(self, rejects: Sequence[Reject]) -> None:
        if self._job.strict and rejects:
            first = min(rejects, key=lambda reject: reject.number)
            raise ValueError(f"{first.file}:{first.number}: {first.reason}")


def columns_of(output: RerankOutput) -> dict[str, np.ndarray]:
    """Scores by the name of their field: "score", or "score_8", "score_16", ... for several cutoff layers."""
    by_layer = output.scores if isinstance(output.scores, dict) else {None: output.scores}
    return {"score" if len(by_layer) == 1 else f"score_{layer}": scores for layer, scores in by_layer.items()}
