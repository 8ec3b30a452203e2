"""Which mesh of a topology scores a job fastest, and how long that takes."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from flax_rerank.batching import Shape, Step
from flax_rerank.planning.abstract import AbstractScorer, abstract_scorer
from flax_rerank.planning.step import DoesNotFit, StepPlan, plan_step
from flax_rerank.planning.topology import GIB, Topology, larger_slices
from flax_rerank.planning.workload import Workload
from flax_rerank.scoring import Static
from flax_rerank.settings import RerankerModelClass
from flax_rerank.sharding import DATA, DEFAULT_RULES, MODEL, MeshError
from flax_rerank.spec import Spec

# The mesh with fewer collectives is taken from those within this factor: the roofline hides them behind other work.
ABOUT_AS_FAST = 1.05
# A shape with a smaller share of the work is not compiled, unless it is the longest.
SHARE = 0.01
# So many shapes are compiled for a mesh at the most: of ModernBERT with 8,192 tokens each takes some 15 seconds.
MOST_SHAPES = 4
# How many larger slices are tried for a model that does not fit: up to eight or sixteen times the chips.
LARGER = 3


@dataclass
class MeshPlan:
    """What was found for one mesh.

    Attributes:
        mesh: as "data=2,model=4".
        notes: what was decided on the way.
        refused: why the mesh is impossible or not the best; empty for the best.
        steps: each shape's step, and how often it runs for each pair.
        parameter_bytes: on each device.
    """

    mesh: str
    notes: list[str] = field(default_factory=list)
    refused: str = ""
    steps: dict[Shape, tuple[StepPlan, float]] = field(default_factory=dict)
    parameter_bytes: int = 0

    @property
    def seconds_per_pair(self) -> float:
        """A lower bound, by the roofline of each step."""
        return sum(times * step.seconds for step, times in self.steps.values())

    @property
    def pairs_per_second(self) -> float:
        """An upper bound; 0 if the machine's speed is not known."""
        return 1 / self.seconds_per_pair if self.seconds_per_pair else 0.0

    @property
    def bound(self) -> str:
        """The part of the machine that bounds most of the time."""
        seconds: defaultdict[str, float] = defaultdict(float)
        for step, times in self.steps.values():
            seconds[step.bound] += times * step.seconds
        return max(seconds, key=seconds.__getitem__)


@dataclass(frozen=True)
class Plan:
    """What was found for a model on a topology.

    Attributes:
        best: None if the model fits no mesh.
        others: the other meshes, each with the reason why it is not the best.
        price: of a chip for an hour, if it was given.
    """

    model: str
    topology: Topology
    dtype: str
    workload: Workload
    best: MeshPlan | None
    others: tuple[MeshPlan, ...]
    price: float | None

    @property
    def hours(self) -> float | None:
        """Of the job; None if its size or the machine's speed is not known."""
        if self.best is None or not self.workload.pairs or not self.best.pairs_per_second:
            return None
        return self.workload.pairs / self.best.pairs_per_second / 3600


def make_plan(
    spec: Spec,
    topology: Topology,
    workload: Workload,
    *,
    mesh: str | None = None,
    price: float | None = None,
    compile_all: bool = False,
) -> Plan:
    """Plan a job. Each mesh that the model may fit is compiled for the shape that most of the work is in, the best of
    them for all shapes. A vocabulary that does not divide is replicated, unless the spec's settings have sharding
    rules.

    Args:
        mesh: the only one to try, as "data=2,model=4".
        price: of a chip for an hour.
        compile_all: also compile for meshes that cannot be faster.

    Raises:
        MeshError: `mesh` is impossible; the message names those that are possible.
        ValueError: the spec's settings do not fit the model.
    """
    trials: list[_Trial] = []
    impossible: list[MeshPlan] = []
    unbeatable = ""
    for candidate in [mesh] if mesh is not None else sensible_meshes(topology):
        try:
            trial = _place(spec, topology, workload, candidate)
        except MeshError as error:
            if mesh is not None:
                known = "; ".join(sensible_meshes(topology))
                raise MeshError(f"{error}. Meshes of {topology.name}: {known}") from error
            impossible.append(MeshPlan(candidate, refused=str(error)))
            continue
        trials.append(trial)
        if unbeatable:
            trial.found.refused = f"not compiled: {unbeatable}"
        else:
            trial.run(only_main=mesh is None)
            unbeatable = "" if compile_all else _unbeatable(trial.found)
    best = None
    while best is None and (fitting := [each for each in trials if not each.found.refused]):
        fastest = _fastest(fitting)
        fastest.run()
        best = None if fastest.found.refused else fastest.found
    others = [each.found for each in trials if each.found is not best]
    for other in others:
        other.refused = other.refused or _slower(other)
    dtype = trials[0].scorer.dtype.name
    return Plan(spec.name, topology, dtype, workload, best, (*others, *impossible), price)


def nearest_that_fits(
    spec: Spec, topology: Topology, workload: Workload, *, mesh: str | None = None, **options: Any
) -> Plan | None:
    """The plan that is nearest to a topology (and mesh) which a model does not fit: another mesh of the topology, else
    the smallest larger slice; None if the model fits none of these. Options are those of `make_plan`."""
    for candidate in (*([topology] if mesh is not None else []), *islice(larger_slices(topology), LARGER)):
        plan = make_plan(spec, candidate, workload, **options)
        if plan.best is not None:
            return plan
    return None


def sensible_meshes(topology: Topology) -> list[str]:
    """All ways to share the devices between data and model, the most data first. On GPUs all are on data: what
    collectives cost is not known without compiling."""
    count = len(topology.devices)
    if topology.chip.platform == "gpu":
        return [f"data={count}"]
    parts = [part for part in range(1, count + 1) if count % part == 0]
    return [f"data={count // part},model={part}" if part > 1 else f"data={count}" for part in parts]


@dataclass
class _Trial:
    """A mesh that is tried, and what is known of it so far (`found`).

    Attributes:
        compiled: the steps that fit, also those cut from larger ones.
        budget: tokens that a step may compute, once a larger one did not fit.
    """

    scorer: AbstractScorer
    topology: Topology
    workload: Workload
    found: MeshPlan
    compiled: dict[Shape, StepPlan] = field(default_factory=dict)
    budget: float = math.inf

    def run(self, *, only_main: bool = False) -> None:
        """Compile the job's shapes, or only the one with most of the work, which then stands for all."""
        found, memory = self.found, self.topology.chip.memory
        needed = found.parameter_bytes
        if needed > memory:
            found.refused = f"its parameters take {needed / GIB:.2f} GiB of a device's {memory / GIB:.2f} GiB"
            return
        shard = self.workload.shard(self.scorer.spec)
        prepared = self.scorer.plan(shard)
        found.steps = {}
        for shape, times in _shapes_of(prepared.steps, only_main).items():
            try:
                step = self._fit(shape, prepared.call.static(shape))
            except DoesNotFit as error:
                found.refused, found.steps = str(error), {}
                return
            per_pair = times / len(shard) * shape.rows / step.shape.rows
            _, already = found.steps.get(step.shape, (step, 0.0))
            found.steps[step.shape] = step, already + per_pair

    def _fit(self, shape: Shape, static: Static) -> StepPlan:
        """The step of a shape, cut into smaller ones until it fits, as scoring does."""
        multiple = self.scorer.mesh.shape[DATA]
        while shape not in self.compiled:
            smaller = Step(np.zeros(0, np.int64), shape).halves(multiple)[0].shape
            divisible = shape.rows > multiple
            if divisible and shape.tokens > self.budget:
                shape = smaller
                continue
            try:
                self.compiled[shape] = plan_step(self.scorer, self.topology, shape, static)
            except DoesNotFit as error:
                if not divisible:
                    raise
                self.found.notes.append(f"{error}: cut into steps of {smaller.rows} rows, as scoring does")
                self.budget = shape.tokens // 2
                shape = smaller
        return self.compiled[shape]


def _place(spec: Spec, topology: Topology, workload: Workload, mesh: str) -> _Trial:
    """Put the model on a mesh."""
    notes = []
    if not spec.tokenizer.files and spec.model_class is not RerankerModelClass.ENCODER_ONLY_BASE:
        notes.append("the tokenizer is not here: prompts are counted by words, a few tokens too short or too long")
    if topology.hosts > 1:
        notes.append(f"{mesh} is over {topology.hosts} hosts; without --mesh each host scores shards of its own")
    try:
        scorer = abstract_scorer(spec, topology, mesh)
    except MeshError as error:
        if error.axis != "vocab" or spec.settings.sharding_rules != DEFAULT_RULES:
            raise
        rules = replace(DEFAULT_RULES, vocab=None)
        scorer = abstract_scorer(replace(spec, settings=replace(spec.settings, sharding_rules=rules)), topology, mesh)
        size = spec.config.vocab_size
        notes.append(f"the vocabulary of {size} does not divide over {mesh}: replicated (--replicate vocab)")
    if topology.chip.platform == "gpu" and scorer.mesh.shape[MODEL] > 1:
        raise MeshError(
            f"GPUs are planned by roofline alone, which does not know what collectives cost: take "
            f"data={len(topology.devices)} instead of {mesh}"
        )
    return _Trial(scorer, topology, workload, MeshPlan(mesh, notes, parameter_bytes=scorer.parameter_bytes))


def _shapes_of(steps: Sequence[Step], only_main: bool) -> dict[Shape, float]:
    """The shapes to compile, and how many steps of each there are: those that stand for equal shares of the work, the
    longest among them, or the one with most of the work. The others count as more steps of the one of these whose
    length is nearest."""
    counts = Counter(step.shape for step in steps)
    work = {shape: times * shape.tokens for shape, times in counts.items()}
    by_length = sorted(counts, key=lambda shape: (shape.length, shape.rows))
    least = SHARE * sum(work.values())
    chosen = [shape for shape in by_length if work[shape] >= least or shape == by_length[-1]]
    if only_main:
        chosen = [max(work, key=work.__getitem__)]
    elif len(chosen) > MOST_SHAPES:
        done = np.cumsum([work[shape] for shape in chosen])
        shares = done[-1] * np.arange(1, MOST_SHAPES) / MOST_SHAPES
        chosen = [chosen[place] for place in np.unique([*np.searchsorted(done, shares), len(chosen) - 1])]
    stands_for: Counter[Shape] = Counter()
    for shape in by_length:
        stands_for[min(chosen, key=lambda each: abs(each.length - shape.length))] += work[shape]
    return {shape: stands_for[shape] / shape.tokens for shape in chosen}


def _fastest(fitting: Sequence[_Trial]) -> _Trial:
    """Of the meshes that are about as fast as the fastest, the one that splits the model least."""
    least = min(each.found.seconds_per_pair for each in fitting)
    return next(each for each in fitting if each.found.seconds_per_pair <= ABOUT_AS_FAST * least)


def _unbeatable(mesh: MeshPlan) -> str:
    """Why no mesh that splits the model further can be faster than this one; empty if one may be."""
    if mesh.refused:
        return ""
    if not mesh.pairs_per_second:
        return f"the machine's speed is not known, and {mesh.mesh} fits"
    return f"matrix products bound {mesh.mesh}, and each device has as many here" if mesh.bound == "matrix" else ""


def _slower(mesh: MeshPlan) -> str:
    """Why a mesh that the model fits is not the best."""
    if not mesh.pairs_per_second:
        return "splits the model further than necessary"
    return f"at most {mesh.pairs_per_second:,.0f} pairs/s, bound by {mesh.bound}, and splits the model further"
