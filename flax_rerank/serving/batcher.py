"""Requests of many clients to batches: what waits while one batch is scored makes up the next.

No request waits for others to come. All bookkeeping is done by the event loop; two threads tokenise and score.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from flax_rerank.batching import max_step_tokens
from flax_rerank.rerankers import AbsReranker, FlaxListwiseReranker, Prepared, RerankOutput
from flax_rerank.scoring import MOST_PROGRAMS
from flax_rerank.serving.apis.common import RequestError
from flax_rerank.serving.metrics import Metrics
from flax_rerank.serving.options import ServeOptions
from flax_rerank.serving.shapes import full_shapes, small_shapes, smallest
from flax_rerank.sharding import DATA

logger = logging.getLogger(__name__)

Pairs = list[tuple[str, str]]

# A request is refused where those before it would take more than this share of its time.
SAFE = 0.75
# How much the latest batch counts in the measured speed.
NEWEST = 0.3
# Pairs whose time is taken before the first request.
SAMPLE = 8

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class Scores(NamedTuple):
    """Scores as the model gives them, float64 [pairs]; tokens, int32; whether query or passage were cut, bool."""

    scores: np.ndarray
    tokens: np.ndarray
    truncated: np.ndarray


@dataclass(eq=False)
class Job:
    """The pairs of a request, how many of them are in batches, and what came of them."""

    pairs: Pairs
    future: "asyncio.Future[Scores]"
    taken: int = 0
    parts: list[Scores] = field(default_factory=list)


class Slice(NamedTuple):
    """The pairs of a job that are in one batch."""

    job: Job
    start: int
    stop: int


class Batcher:
    """Scores requests in batches.

    Args:
        reranker: what scores; it must give one score for each pair.
        options: of the server.
        metrics: where it counts.

    Attributes:
        ready: whether all shapes are compiled.
    """

    def __init__(self, reranker: AbsReranker, options: ServeOptions, metrics: Metrics) -> None:
        sample = reranker.prepare([("query", "passage")], skip_faulty=True, normalize=False)
        if sample.call.layers is not None and len(sample.call.layers) > 1:
            raise ValueError("a server gives one score for each pair: give one cutoff layer")
        call, multiple = sample.call, reranker.mesh.shape[DATA]
        platform, width = reranker.mesh.devices.flat[0].platform, reranker.spec.config.hidden_size
        budget = call.settings.batch_size * call.settings.max_length
        tokens = min(max_step_tokens(platform, width) * multiple, budget)
        self._full = full_shapes(call.template.max_tokens, tokens, call.most_around, multiple)
        self._small = small_shapes(self._full, multiple)[: MOST_PROGRAMS - len(self._full)]
        self._sample = sample
        # Scores of a list depend on all of its passages: it is never cut, and shares no prompt.
        self._whole = isinstance(reranker, FlaxListwiseReranker)
        self._reranker, self._options, self._metrics = reranker, options, metrics
        self._waiting: deque[Job] = deque()
        self._arrived = asyncio.Event()
        self._preparing, self._scoring = asyncio.Lock(), asyncio.Lock()
        self._pairs_per_second = 0.0
        self.ready = False

    async def run(self) -> None:
        """Compile all shapes, and then score what is submitted, until it is cancelled."""
        start = time.perf_counter()
        shapes = () if self._whole else (*self._full, *self._small)
        await asyncio.to_thread(self._warm_up, replace(self._sample, table=shapes))
        logger.info("ready: %d shapes compiled in %.1f s", len(shapes), time.perf_counter() - start)
        self._metrics.count_compilations()
        self._metrics.ready.set(1)
        self.ready = True
        # Two of them: while one scores its batch, the other tokenises the next.
        await asyncio.gather(self._work(), self._work())

    def submit(self, pairs: Pairs) -> "asyncio.Future[Scores]":
        """The scores of pairs, in time. Cancel the future, and those that are not scored yet never are.

        Raises:
            RequestError: not ready yet, or no room for these pairs.
        """
        if not self.ready:
            raise RequestError("starting", "the model is not ready yet", retry_after=1)
        waiting = self._count_waiting()
        wait = (waiting + len(pairs)) / self._pairs_per_second
        if waiting and (waiting + len(pairs) > self._options.max_queue or wait > SAFE * self._options.timeout):
            retry = math.ceil(waiting / self._pairs_per_second)
            raise RequestError("full", f"{waiting} pairs wait already; try again later", retry_after=retry)
        job = Job(pairs, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._arrived.set()
        self._count_waiting()
        return job.future

    def _count_waiting(self) -> int:
        waiting = sum(len(job.pairs) - job.taken for job in self._waiting if not job.future.done())
        self._metrics.waiting.set(waiting)
        return waiting

    async def _work(self) -> None:
        """Take, tokenise and score batches, one after the other."""
        while True:
            async with self._preparing:
                while not (slices := self._take()):
                    self._arrived.clear()
                    await self._arrived.wait()
                self._count_waiting()
                prepared = await self._attempt(slices, self._prepare, slices)
            async with self._scoring:
                if prepared is None:
                    continue
                live = self._live(slices)
                if live and len(live) < len(slices):
                    prepared = await self._attempt(live, self._prepare, live)
                if live and prepared is not None:
                    start = time.perf_counter()
                    output = await self._attempt(live, self._reranker.run, prepared)
                    if output is not None:
                        self._count(live, output, time.perf_counter() - start)
                        self._give(live, output, prepared)

    def _take(self) -> list[Slice]:
        """The pairs of the next batch. What is left of a long request comes after the others that wait."""
        slices: list[Slice] = []
        room = self._options.batch_pairs
        while self._waiting and room > 0:
            job = self._waiting.popleft()
            left = len(job.pairs) - job.taken
            if job.future.done():
                self._metrics.dropped.inc(left)
                continue
            count = left if self._whole else min(left, room)
            slices.append(Slice(job, job.taken, job.taken + count))
            job.taken += count
            room = 0 if self._whole else room - count
            if count < left:
                self._waiting.append(job)
        return slices

    def _live(self, slices: list[Slice]) -> list[Slice]:
        live = [each for each in slices if not each.job.future.done()]
        self._metrics.dropped.inc(sum(each.stop - each.start for each in slices if each.job.future.done()))
        return live

    async def _attempt(
        self, slices: list[Slice], work: Callable[[Argument], Result], argument: Argument
    ) -> Result | None:
        """What `work` gives in a thread; None if it fails, and then these requests fail."""
        try:
            return await asyncio.to_thread(work, argument)
        except (jax.errors.JaxRuntimeError, MemoryError, ValueError) as error:
            logger.error("a batch failed: %s: %s", type(error).__name__, error)
            for each in self._live(slices):
                each.job.future.set_exception(RequestError("backend", "the model failed; the server's log says why"))
            return None

    def _warm_up(self, prepared: Prepared) -> None:
        self._reranker.warmup(prepared)
        # The speed, until there is a better one: that of long passages, so that at first too much is refused.
        pairs = [(f"query {number}", "a " * self._full[-1].length) for number in range(SAMPLE)]
        start = time.perf_counter()
        self._reranker.run(self._plan(pairs))
        self._pairs_per_second = SAMPLE / (time.perf_counter() - start)

    def _prepare(self, slices: list[Slice]) -> Prepared:
        return self._plan([pair for job, start, stop in slices for pair in job.pairs[start:stop]])

    def _plan(self, pairs: Pairs) -> Prepared:
        if self._whole:
            return self._reranker.prepare(pairs, skip_faulty=True, normalize=False)
        prepared = self._reranker.prepare(pairs, table=self._full, skip_faulty=True, normalize=False)
        lengths = prepared.pairs.lengths
        steps = (smallest(step, int(lengths[step.pairs].max()), self._small) for step in prepared.steps)
        return replace(prepared, steps=tuple(steps))

    def _count(self, slices: list[Slice], output: RerankOutput, seconds: float) -> None:
        pairs, metrics = len(output.tokens), self._metrics
        self._pairs_per_second += NEWEST * (pairs / max(seconds, 1e-6) - self._pairs_per_second)
        metrics.pairs.inc(pairs)
        metrics.batch.observe(pairs)
        metrics.shared.observe(len({each.job for each in slices}))
        metrics.tokens.inc(output.computed_tokens)
        metrics.padding.inc(output.padding_tokens)

    def _give(self, slices: list[Slice], output: RerankOutput, prepared: Prepared) -> None:
        """Give each request the scores of its pairs."""
        by_layer = output.scores
        only = next(iter(by_layer.values())) if isinstance(by_layer, dict) else by_layer
        scores = Scores(only, output.tokens, output.truncated)
        first = 0
        for job, start, stop in slices:
            part = slice(first, first + stop - start)
            faults = {index - first + start: prepared.faults[index] for index in prepared.faults if _in(index, part)}
            first = part.stop
            if job.future.done():
                continue
            if faults:
                number = min(faults)
                job.future.set_exception(RequestError("invalid", f"document {number}: {faults[number]}"))
            elif not np.isfinite(scores.scores[part]).all():
                message = "a score is not finite: check the weights, or serve with --dtype float32"
                job.future.set_exception(RequestError("backend", message))
            else:
                job.parts.append(Scores(*(values[part] for values in scores)))
                if stop == len(job.pairs):
                    job.future.set_result(Scores(*map(np.concatenate, zip(*job.parts, strict=True))))


def _in(index: int, part: slice) -> bool:
    return part.start <= index < part.stop
