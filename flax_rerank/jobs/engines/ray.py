"""The Ray engine: actors of a Ray cluster score the shards. Ray Data gives them out, again where an actor died."""

import logging
import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flax_rerank.jobs.engines.local import unfinished
from flax_rerank.jobs.job import Job
from flax_rerank.jobs.manifest import Description, Manifest, check
from flax_rerank.jobs.rows import Shard
from flax_rerank.jobs.shards import Marker, ShardScorer
from flax_rerank.jobs.stopping import StopSignals
from flax_rerank.jobs.summary import Progress
from flax_rerank.jobs.weights import Record, changed_weights

T = TypeVar("T")

CALLS_AT_A_TIME = 2  # in an actor: one reads or writes while the other has the devices
# Errors that the user can correct are returned as data: Ray Data turns an actor's exception into a long text.
FAULTS = (ValueError, FloatingPointError, MemoryError)


@dataclass(frozen=True)
class RayEngine:
    """Actors that each hold the reranker. This process only gives out the shards; it never loads the model."""

    address: str | None = None  # of a cluster; None for that of RAY_ADDRESS, or else a new one on this machine
    actors: int = 1
    resources: Mapping[str, float] = field(default_factory=dict)  # of each, by Ray's names: CPU, GPU, TPU or others
    show_progress_bar: bool = False

    count = 1
    lock_step = False
    writes = True

    def changed_weights(self, job: Job, recorded: Mapping[str, Record]) -> list[str]:
        """See `weights.changed_weights`; called on the cluster, where the model is."""
        return self._call(changed_weights, job, recorded)

    def run(
        self, job: Job, description: Description, shards: Sequence[Shard], signals: StopSignals
    ) -> Sequence[Marker]:
        """Score the shards that are not finished, and return the markers that the actors wrote.

        Raises as `LocalEngine.run`, and RayError for any other error in an actor.
        """
        todo = unfinished(job, shards)
        if not todo:
            return []
        ray = self._connect()
        signals.install()  # Ray took SIGTERM
        options = self._remote_arguments()
        if check(job, description, self.changed_weights) is None:
            # Once, before the actors start; each of them then checks that the manifest is that of its reranker.
            self._call(lambda: Manifest(job, description, shards, job.load()).write(), **options)
        items = [{"shard": shard.index} for shard in todo]
        results = ray.data.from_items(items, override_num_blocks=len(todo)).map_batches(
            ShardActor,
            fn_constructor_args=(job, description, shards),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                size=min(self.actors, len(todo)),
                max_tasks_in_flight_per_actor=CALLS_AT_A_TIME,
                max_concurrent_calls_per_actor=CALLS_AT_A_TIME,
                enable_true_multi_threading=True,
            ),
            **options,
        )
        markers = []
        rows = sum(shard.rows for shard in todo)
        with Progress(total=rows, unit="pair", disable=not self.show_progress_bar) as progress:
            for row in results.iter_rows():
                marker = pickle.loads(row["result"])
                if isinstance(marker, Exception):
                    raise marker
                markers.append(marker)
                progress.add(shards[marker["shard"]].rows, marker)
                signals.check()
        return markers

    def _connect(self) -> Any:
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise ImportError("the Ray engine needs Ray Data; install flax-rerank[ray]") from error
        if not ray.is_initialized():
            ray.init(address=self.address, logging_level=logging.WARNING)
        ray.data.DataContext.get_current().enable_progress_bars = False
        return ray

    def _call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call a function on the cluster; return what it returns, or raise what it raises."""
        ray = self._connect()
        try:
            return ray.get(ray.remote(function).options(**options).remote(*arguments))
        except ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from error

    def _remote_arguments(self) -> dict[str, Any]:
        others = {name: amount for name, amount in self.resources.items() if name not in ("CPU", "GPU")}
        given = {"num_cpus": self.resources.get("CPU"), "num_gpus": self.resources.get("GPU"), "resources": others}
        return {name: value for name, value in given.items() if value}


class ShardActor:
    """A reranker on some machine of the cluster. Called with one shard at a time, by two threads."""

    def __init__(self, job: Job, description: Description, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._scorer = ShardScorer(job)
        self._scorer.table = Manifest(job, description, shards, self._scorer.reranker).table
        self._devices = threading.Lock()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        """Score one shard, given by its index; return its marker, or the error of a fault in it."""
        (shard,) = batch["shard"]
        result: Marker | Exception
        try:
            ready = self._scorer.prepare(self._shards[shard])
            with self._devices:
                scored = self._scorer.score(ready)
            result = self._scorer.write(scored)
        except FAULTS as error:
            kind = next(kind for kind in FAULTS if isinstance(error, kind))  # one that can be pickled
            result = kind(str(error))
        return {"result": [pickle.dumps(result)]}
