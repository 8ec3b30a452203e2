"""The batches of a training: which examples a step sees, with which passages, and at which length.

Step k depends on the files, the settings and k alone, so that a run resumes at any step. An epoch is a permutation of
the examples, cut into windows of `WINDOW` steps. In a window, groups are sorted by their longest row and cut into
steps, whose order is then drawn: rows of a step have similar lengths, and few tokens are padding.
"""

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import NamedTuple

import numpy as np

from flax_rerank.batching import GRID, fit_lengths
from flax_rerank.training.data.examples import MAX_LABEL, DataError, Example, check
from flax_rerank.training.data.groups import Group, add_other_queries, draw
from flax_rerank.training.data.settings import DataSettings
from flax_rerank.training.data.sources import Source
from flax_rerank.training.data.tokens import EncodedGroup, Encoder
from flax_rerank.training.losses import TAUGHT
from flax_rerank.training.step import Batch

WINDOW = 32  # steps
WINDOW_GROUPS = 4096  # at most, but at least one step: the first one waits for the whole window
SAMPLE = 1024  # groups, from which the table of lengths is made
LENGTHS = 6  # programs that a run compiles at most
AHEAD = 2  # windows made while the device works
# Losses of single passages, or of the teacher's scores alone.
WITHOUT_POSITIVE = {"binary_cross_entropy", *TAUGHT}


class BatchInfo(NamedTuple):
    """What a batch holds.

    Attributes:
        step: its step, from 0.
        epoch: the epoch of its queries, from 0.
        groups: its queries.
        real_tokens: tokens of its rows.
        computed_tokens: rows times length, over all micro batches.
    """

    step: int
    epoch: int
    groups: int
    real_tokens: int
    computed_tokens: int


class TrainingData:
    """Examples as batches.

    Args:
        sources: of the examples.
        encoder: makes token ids of them.
        settings: how groups are drawn.
        groups_per_micro: queries in a micro batch, on all devices together.
        max_steps: of the run, instead of `num_train_epochs`.
        loss: an entry of `losses.LOSSES`, which says what the examples must have.

    Attributes:
        steps: of the whole run.
        steps_per_epoch: of one epoch; in the last one, groups that are missing are masked.
        examples: queries of an epoch.
        digests: for each file what tells its contents apart.
        lengths: the lengths that batches have.

    Raises:
        DataError: an example at fault, named by file and line.
        ValueError: lengths that the model or the prompt do not allow.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        encoder: Encoder,
        settings: DataSettings,
        *,
        groups_per_micro: int,
        max_steps: int | None = None,
        loss: str = "cross_entropy",
    ) -> None:
        self._sources, self._encoder, self._settings = sources, encoder, settings
        self._ends = np.cumsum([len(source) for source in sources])
        self._micro = groups_per_micro
        self._teacher = settings.knowledge_distillation or loss in TAUGHT
        if self._teacher and settings.in_batch_negatives:
            raise ValueError("in_batch_negatives have no teacher scores: leave them or the teacher out")
        self.examples = int(self._ends[-1])
        self._check_examples(loss)
        self._step_groups = groups_per_micro * settings.gradient_accumulation_steps
        self.steps_per_epoch = -(-self.examples // self._step_groups)
        epochs = math.ceil(settings.num_train_epochs * self.steps_per_epoch)
        self.steps = epochs if max_steps is None else max_steps
        self._window = 1
        if settings.group_by_length:
            self._window = min(max(WINDOW_GROUPS // self._step_groups, 1), WINDOW)
        self.digests = {name: digest for source in sources for name, digest in source.digests().items()}
        self.lengths = self._choose_lengths()

    def batches(self, start_step: int = 0) -> Iterator[tuple[Batch, BatchInfo]]:
        """The batches of the run from a step on, with what they hold. They are made ahead, in threads."""
        windows = self._windows(start_step)
        with ThreadPoolExecutor(AHEAD, "training-data") as pool:
            pending: deque[tuple[int, Future[list[tuple[Batch, BatchInfo]]]]] = deque()
            try:
                while True:
                    for first, epoch, place in itertools.islice(windows, AHEAD - len(pending)):
                        pending.append((first, pool.submit(self._make_window, epoch, place)))
                    if not pending:
                        return
                    first, window = pending.popleft()
                    for step, (batch, info) in enumerate(window.result(), start=first):
                        if start_step <= step < self.steps:
                            yield batch, info._replace(step=step)
            finally:
                for _, window in pending:
                    window.cancel()

    def _windows(self, start_step: int) -> Iterator[tuple[int, int, int]]:
        """First step, epoch and place in it of each window, from that of a step to the end of the run."""
        epoch, place = divmod(start_step, self.steps_per_epoch)
        place -= place % self._window
        while (first := epoch * self.steps_per_epoch + place) < self.steps:
            yield first, epoch, place
            place += self._window
            if place >= self.steps_per_epoch:
                epoch, place = epoch + 1, 0

    def _make_window(self, epoch: int, place: int) -> list[tuple[Batch, BatchInfo]]:
        size, seed = self._step_groups, self._settings.seed
        groups = self._draw(epoch, self._order(epoch)[place * size : (place + self._window) * size])
        encoded = self._encoder.encode(groups)
        if self._settings.group_by_length:
            longest = np.asarray([group.lengths.max() for group in encoded])
            encoded = [encoded[index] for index in np.argsort(-longest, kind="stable")]
        if self._settings.in_batch_negatives:
            groups = [group.group for group in encoded]
            for start in range(0, len(groups), self._micro):
                rng = Random(f"{seed} {epoch} {place} {start}")
                add_other_queries(groups[start : start + self._micro], rng, self._settings.train_group_size)
            encoded = self._encoder.encode(groups)
        steps = [encoded[start : start + size] for start in range(0, len(encoded), size)]
        # A seed that ends in 0 counts as the one without.
        order = np.random.default_rng([seed, epoch, place + 1]).permutation(len(steps))
        return [self._batch(epoch, steps[index]) for index in order]

    def _batch(self, epoch: int, groups: Sequence[EncodedGroup]) -> tuple[Batch, BatchInfo]:
        accumulated, size = self._settings.gradient_accumulation_steps, self._settings.train_group_size
        longest = max(int(group.lengths.max()) for group in groups)
        length = next(length for length in self.lengths if length >= longest)
        shape = (accumulated * self._micro, size)
        input_ids = np.zeros((*shape, length), np.int32)
        lengths, starts = np.ones(shape, np.int32), np.ones(shape, np.int32)
        labels, mask = np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
        teacher = np.zeros(shape, np.float32) if self._teacher else None
        for number, group in enumerate(groups):
            count = len(group.lengths)
            for passage in range(count):
                input_ids[number, passage, : group.lengths[passage]] = group.ids(passage)
            lengths[number, :count], starts[number, :count] = group.lengths, group.passage_starts
            labels[number, :count], mask[number, :count] = group.group.labels, True
            if teacher is not None:
                teacher[number, :count] = group.group.teacher
        rows, grouped = (accumulated, self._micro * size), (accumulated, self._micro, size)
        batch = Batch(
            input_ids.reshape(*rows, length),
            lengths.reshape(rows),
            starts.reshape(rows),
            labels.reshape(grouped),
            mask.reshape(grouped),
            None if teacher is None else teacher.reshape(grouped),
        )
        return batch, BatchInfo(0, epoch, len(groups), int(lengths[mask].sum()), input_ids.size)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._settings.seed, epoch]).permutation(self.examples)

    def _draw(self, epoch: int, numbers: np.ndarray) -> list[Group]:
        return [
            draw(self._example(number), Random(f"{self._settings.seed} {epoch} {number}"), self._settings)
            for number in numbers.tolist()
        ]

    def _example(self, number: int) -> Example:
        source = int(np.searchsorted(self._ends, number, side="right"))
        return self._sources[source][number - (int(self._ends[source - 1]) if source else 0)]

    def _check_examples(self, loss: str) -> None:
        settings = self._settings
        max_label = 1.0 if loss == "binary_cross_entropy" else MAX_LABEL
        prompts = set()
        for number in range(self.examples):
            example = self._example(number)
            check(example, teacher=self._teacher, max_label=max_label, positive=loss not in WITHOUT_POSITIVE)
            fillable = (
                example.graded or settings.graded or settings.in_batch_negatives or settings.train_group_size == 1
            )
            if not fillable and 0 not in example.labels:
                raise DataError(
                    f"{example.where}: the query has no negatives: add some, or set in_batch_negatives to take those "
                    "of other queries"
                )
            prompts.add(example.prompt)
        self._limit = max(self._encoder.template(prompt).max_tokens for prompt in prompts)

    def _choose_lengths(self) -> list[int]:
        """Those that pad a sample least, and the longest possible."""
        groups = self._encoder.encode(self._draw(0, self._order(0)[:SAMPLE]))
        longest = np.asarray([int(group.lengths.max()) for group in groups])
        if self._settings.group_by_length:
            steps = np.array_split(-np.sort(-longest), min(self._window, len(longest)))
        else:
            steps = np.split(longest, range(self._step_groups, len(longest), self._step_groups))
        lengths = np.asarray([step.max() for step in steps])
        top = min(-(-int(lengths.max()) // GRID) * GRID, self._limit)
        return sorted({*fit_lengths(lengths, top, LENGTHS if top == self._limit else LENGTHS - 1), self._limit})
