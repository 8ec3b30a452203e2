"""The Ray engine: actors of a Ray cluster score the shards, and Ray Data deals them out, again where an actor died."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from flax_rerank.jobs.engines.local import unfinished
from flax_rerank.jobs.job import Job
from flax_rerank.jobs.manifest import Description, begin, check, checkpoint_digest
from flax_rerank.jobs.progress import Progress
from flax_rerank.jobs.rows import Shard
from flax_rerank.jobs.shards import Marker, ShardScorer
from flax_rerank.jobs.stopping import StopSignals

T = TypeVar("T")

CALLS_AT_A_TIME = 2  # in an actor: one reads or writes while the other has the devices
# Errors that the user can correct are returned as data: Ray Data turns an actor's exception into a long text.
FAULTS = {error.__name__: error for error in (ValueError, FloatingPointError, MemoryError)}


@dataclass(frozen=True)
class RayEngine:
    """Actors that each hold the reranker. This process only deals out the shards; it never loads the model.

    Attributes:
        address: of a cluster; None for that of RAY_ADDRESS, or else a new one on this machine.
        actors: how many.
        resources: of each, by Ray's names: CPU, GPU, TPU or others.
        show_progress_bar: show the progress.
    """

    address: str | None = None
    actors: int = 1
    resources: Mapping[str, float] = field(default_factory=dict)
    show_progress_bar: bool = False

    count = 1
    lock_step = False
    writes = True

    def checkpoint_digest(self, job: Job) -> str:
        """See `manifest.checkpoint_digest`; taken on the cluster, where the model is."""
        return self._call(checkpoint_digest, job.model, job.adapter, job.cache_dir)

    def agree(self, complete: bool) -> bool:
        """Whether the job is complete."""
        return complete

    def run(
        self, job: Job, description: Description, shards: Sequence[Shard], signals: StopSignals
    ) -> Sequence[Marker]:
        """Score the shards that are not finished.

        Returns:
            No markers: the actors write them.

        Raises:
            As `LocalEngine.run`.
            RayError: whatever else goes wrong in an actor.
        """
        todo = unfinished(job, shards)
        if not todo:
            return []
        ray = self._connect()
        signals.install()  # Ray took SIGTERM
        options = self._remote_arguments()
        if check(job, description) is None:
            self._call(_begin, job, description, shards, **options)
        scored = ray.data.from_items([asdict(shard) for shard in todo], override_num_blocks=len(todo)).map_batches(
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
        with Progress(sum(shard.rows for shard in todo), self.show_progress_bar) as progress:
            for row in scored.iter_rows():
                if row["fault"]:
                    raise FAULTS[row["fault"]](row["message"])
                progress.add(row["rows"], row)
                signals.check()
        return []

    def _connect(self) -> Any:
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise ImportError("the Ray engine needs Ray Data; install flax-rerank[ray]") from error
        if not ray.is_initialized():
            ray.init(address=self.address, logging_level=logging.WARNING)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        return ray

    def _call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """What a function gives, or raises, on the cluster."""
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
        start = time.perf_counter()
        reranker = job.load()
        load_seconds = time.perf_counter() - start
        self._scorer = ShardScorer(job, reranker, begin(job, description, shards, reranker), load_seconds)
        self._devices = threading.Lock()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Score one shard, given as its fields; gives what the progress line needs of it, or what is at fault."""
        (shard,) = (
            Shard(*values)
            for values in zip(*(batch[name].tolist() for name in (field.name for field in fields(Shard))), strict=True)
        )
        row = {"rows": shard.rows, "tokens": 0, "computed_tokens": 0, "fault": "", "message": ""}
        try:
            ready = self._scorer.prepare(shard)
            with self._devices:
                scored = self._scorer.score(ready)
            marker = self._scorer.write(scored)
            row |= {name: marker[name] for name in ("tokens", "computed_tokens")}
        except tuple(FAULTS.values()) as error:
            kind = next(name for name, kind in FAULTS.items() if isinstance(error, kind))
            row |= {"fault": kind, "message": str(error)}
        return {name: [value] for name, value in row.items()}


def _begin(job: Job, description: Description, shards: Sequence[Shard]) -> None:
    """Write the manifest, once, before the actors start; each of them then checks that it is the one for its own."""
    begin(job, description, shards, job.load())
