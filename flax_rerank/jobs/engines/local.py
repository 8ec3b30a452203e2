"""The local engine: this process scores its share of the shards, one after the other."""

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather

from flax_rerank.batching import Shape, Table
from flax_rerank.jobs.job import Job
from flax_rerank.jobs.manifest import Description, Manifest
from flax_rerank.jobs.rows import Shard
from flax_rerank.jobs.shards import Marker, ScoredShard, ShardScorer
from flax_rerank.jobs.stopping import StopSignals
from flax_rerank.jobs.summary import Progress
from flax_rerank.jobs.weights import Record, changed_weights

logger = logging.getLogger(__name__)

LONGEST_TABLE = 64


@dataclass(frozen=True)
class LocalEngine:
    """One of `count` processes that share the shards of a job."""

    index: int = 0  # which; it takes the shards with these numbers modulo `count`
    count: int = 1
    # The model's mesh spans processes: all of them take part in every shard, and the first one alone reads the job's
    # folder and writes to it.
    lock_step: bool = False
    show_progress_bar: bool = False

    @property
    def writes(self) -> bool:
        """Whether this process writes what it scores."""
        return not self.lock_step or self.index == 0

    def changed_weights(self, job: Job, recorded: Mapping[str, Record]) -> list[str]:
        """See `weights.changed_weights`."""
        return changed_weights(job, recorded)

    def run(
        self, job: Job, description: Description, shards: Sequence[Shard], signals: StopSignals
    ) -> Sequence[Marker]:
        """Score the shards of this process that are not finished, and return the markers that it wrote.

        A signal to stop drops the shard on the devices; one that is scored is still written. In lock step the shard is
        finished first, since a process that left would let the others wait. Raises as `run_job`.
        """
        mine = shards if self.lock_step else shards[self.index :: self.count]
        todo = unfinished(job, mine) if self.writes else []
        if not todo and not self.lock_step:
            return []
        scorer = ShardScorer(job)
        signals.install()
        manifest = Manifest(job, description, shards, scorer.reranker) if self.writes else None
        if manifest is not None:
            scorer.table = manifest.table
        if self.lock_step:
            scorer.table, todo = _from_first_process(scorer.table, todo, shards)
        hidden = not (self.show_progress_bar and self.writes)
        with Progress(total=sum(shard.rows for shard in todo), unit="pair", disable=hidden) as progress:
            return self._score(scorer, manifest, todo, signals, progress)

    def _score(
        self,
        scorer: ShardScorer,
        manifest: Manifest | None,
        todo: Sequence[Shard],
        signals: StopSignals,
        progress: Progress,
    ) -> Sequence[Marker]:
        """Three shards are in memory at a time: one that is read ahead, one on the devices, one that is written."""
        cancelled = threading.Event()
        markers: list[Marker] = []

        def write(shard: Shard, scored: ScoredShard) -> None:
            if self.writes:
                markers.append(scorer.write(scored))
                progress.add(shard.rows, markers[-1])

        with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
            try:
                written = writer.submit(lambda: None)
                ahead = [reader.submit(scorer.prepare, shard, cancelled.is_set) for shard in todo[:1]]
                for number, shard in enumerate(todo, start=1):
                    self._stop_if_signalled(signals)
                    ready = ahead.pop().result()
                    ahead += [
                        reader.submit(scorer.prepare, after, cancelled.is_set) for after in todo[number : number + 1]
                    ]
                    scored = scorer.score(ready, not progress.disable)
                    if manifest is not None:
                        manifest.write()
                    written.result()
                    written = writer.submit(write, shard, scored)
                    del ready, scored  # else they would live until the next ones are there
                written.result()
                self._stop_if_signalled(signals)
            finally:
                cancelled.set()
        return markers

    def _stop_if_signalled(self, signals: StopSignals) -> None:
        if self.lock_step:
            # All processes stop at the same shard, if one of them got a signal.
            signals.received = int(process_allgather(np.int32(signals.received or 0)).max()) or None
        signals.check()


def unfinished(job: Job, shards: Sequence[Shard]) -> list[Shard]:
    """Those of these shards that are not finished. Deletes what a killed process left of them."""
    finished = job.finished()
    todo = [shard for shard in shards if shard.index not in finished]
    if len(todo) < len(shards):
        logger.info("%d of %d shards are finished already", len(shards) - len(todo), len(shards))
    job.remove_partial_files(shard.index for shard in todo)
    return todo


def _from_first_process(table: Table, todo: Sequence[Shard], shards: Sequence[Shard]) -> tuple[Table, list[Shard]]:
    """The table and the shards of the first process, in all processes."""
    shapes = np.zeros((LONGEST_TABLE, len(Shape._fields)), np.int32)
    shapes[: len(table)] = np.asarray(table, np.int32).reshape(-1, len(Shape._fields))
    numbers = {shard.index for shard in todo}
    wanted = np.asarray([shard.index in numbers for shard in shards], np.int32)
    shapes, wanted = broadcast_one_to_all((shapes, wanted))
    table = tuple(Shape(*shape) for shape in shapes.tolist() if any(shape))
    return table, [shard for shard, is_wanted in zip(shards, wanted, strict=True) if is_wanted]
