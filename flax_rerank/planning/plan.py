"""Which mesh of a topology scores a job fastest, and how long that takes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from flax_rerank.batching import Shape
from flax_rerank.planning.abstract import Model, WeightlessReranker, weightless_reranker
from flax_rerank.planning.chips import GIB
from flax_rerank.planning.step import DoesNotFit, StepPlan, plan_step
from flax_rerank.planning.topology import Topology, larger_slices
from flax_rerank.planning.workload import Workload
from flax_rerank.rerankers import FlaxReranker
from flax_rerank.sharding import DATA, ShardingRules

# Of meshes within this factor the one with fewer collectives is taken: the roofline hides them behind other work.
ABOUT_AS_FAST = 1.05
# Shapes of a smaller share of the work are not compiled, unless they are the longest.
SHARE = 0.01
# How many larger slices are looked at for a model that does not fit: up to eight or sixteen times the chips.
LARGER = 3


@dataclass(frozen=True)
class MeshPlan:
    """What came of one mesh.

    Attributes:
        mesh: as "data=2,model=4".
        notes: what was decided on the way.
        refused: why it cannot be, or is not the best; empty for the best.
        steps: each shape's step, and how often it runs for each pair.
        parameter_bytes: on each device.
        budget: tokens that a step may have, once a larger one did not fit; None before.
    """

    mesh: str
    notes: tuple[str, ...] = ()
    refused: str = ""
    steps: Mapping[Shape, tuple[StepPlan, float]] = field(default_factory=dict)
    parameter_bytes: int = 0
    budget: int | None = None

    @property
    def seconds_per_pair(self) -> float:
        """The least time, by the roofline of each step."""
        return sum(times * step.roofline.seconds for step, times in self.steps.values())

    @property
    def pairs_per_second(self) -> float:
        """At most; 0 where nothing is known of the machine."""
        return 1 / self.seconds_per_pair if self.seconds_per_pair else 0.0

    @property
    def bound(self) -> str:
        """The part of the machine that bounds most of the time."""
        seconds: Counter[str] = Counter()
        for step, times in self.steps.values():
            seconds[step.roofline.bound] += times * step.roofline.seconds
        return seconds.most_common(1)[0][0]


@dataclass(frozen=True)
class Plan:
    """What was found for a model on a topology.

    Attributes:
        best: None where the model fits no mesh.
        others: the meshes that were tried besides, each with the reason why it is not the best.
        price: of a chip for an hour; None where nobody said.
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
        """Of the job; None where its size or the machine's speed is not known."""
        if self.best is None or not self.workload.pairs or not self.best.pairs_per_second:
            return None
        return self.workload.pairs / self.best.pairs_per_second / 3600

    @property
    def cost(self) -> float | None:
        """Of the job, in the currency of `price`."""
        return None if self.hours is None or self.price is None else self.hours * self.topology.chips * self.price


def make_plan(
    model: Model,
    topology: Topology,
    workload: Workload,
    *,
    mesh: str | None = None,
    rules: ShardingRules | None = None,
    price: float | None = None,
    compile_all: bool = False,
    **arguments: Any,
) -> Plan:
    """Plan a job. Each mesh that the model may fit is compiled for the shape that most of the work is in, the best of
    them for all shapes.

    Args:
        mesh: the only one to try, as "data=2,model=4".
        rules: which axes of the parameters are split; by default all that divide, and the vocabulary is replicated
            where it does not.
        price: of a chip for an hour.
        compile_all: also meshes that cannot be faster.
        arguments: of the reranker's class.

    Raises:
        ValueError: `mesh` cannot be, with the nearest that can; and as the reranker's class.
    """
    meshes = [mesh] if mesh is not None else sensible_meshes(topology)
    tried: list[MeshPlan] = []
    rerankers: dict[str, WeightlessReranker] = {}
    unbeatable = ""
    for candidate in meshes:
        try:
            reranker, notes = _make(model, topology, candidate, rules, arguments)
        except ValueError as error:
            if len(meshes) == 1 and mesh is not None and ("divide" in str(error) or str(error).startswith("mesh ")):
                raise ValueError(
                    f"{error}. Meshes of {topology.name}: {'; '.join(sensible_meshes(topology))}"
                ) from error
            if len(meshes) == 1:
                raise
            tried.append(MeshPlan(candidate, refused=str(error)))
            continue
        rerankers[candidate] = reranker
        if unbeatable:
            tried.append(
                MeshPlan(candidate, notes, f"not compiled: {unbeatable}", parameter_bytes=reranker.parameter_bytes)
            )
            continue
        found = _try(reranker, topology, workload, candidate, notes, only_main=len(meshes) > 1)
        tried.append(found)
        unbeatable = "" if compile_all else _unbeatable(found)
    if not rerankers:
        # Nothing is wrong with the meshes alone: the arguments are at fault.
        raise ValueError(tried[0].refused)
    best = None
    while best is None and any(not each.refused for each in tried):
        chosen = _fastest(tried)
        whole = _try(rerankers[chosen.mesh], topology, workload, chosen.mesh, chosen.notes, known=chosen)
        tried = [whole if each is chosen else each for each in tried]
        best = None if whole.refused else whole
    others = tuple(
        each if each.refused else replace(each, refused=_slower(each, best)) for each in tried if each is not best
    )
    return Plan(model.name, topology, next(iter(rerankers.values())).dtype.name, workload, best, others, price)


def nearest_that_fits(
    model: Model, topology: Topology, workload: Workload, *, mesh: str | None = None, **arguments: Any
) -> Plan | None:
    """The plan for what is nearest to a topology (and mesh) that a model does not fit: another mesh of it, else the
    smallest larger slice; None where there is no such. Arguments are those of `make_plan`."""
    for candidate in (*([topology] if mesh is not None else []), *islice(larger_slices(topology), LARGER)):
        plan = make_plan(model, candidate, workload, **arguments)
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


def smaller_steps(shape: Shape, multiple: int) -> Shape | None:
    """The shape into whose steps scoring cuts one that does not fit; None where there is none smaller."""
    rows = -(-shape.rows // (2 * multiple)) * multiple
    return Shape(rows, shape.length) if rows < shape.rows else None


def _make(
    model: Model, topology: Topology, mesh: str, rules: ShardingRules | None, arguments: Mapping[str, Any]
) -> tuple[WeightlessReranker, tuple[str, ...]]:
    if topology.chip.platform == "gpu" and _parts(mesh) > 1:
        raise ValueError(
            f"GPUs are planned by roofline alone, which does not know what collectives cost: take "
            f"data={len(topology.devices)} instead of {mesh}"
        )
    notes = []
    if not (model.has_tokenizer or issubclass(model.kind, FlaxReranker)):
        notes.append("no tokenizer is here: prompts are counted by words, a few tokens too short or too long")
    if topology.hosts > 1:
        notes.append(f"{mesh} is over {topology.hosts} hosts; without --mesh each host scores shards of its own")
    try:
        reranker = weightless_reranker(model, topology, mesh, rules or ShardingRules(), **arguments)
    except ValueError as error:
        if rules is not None or not str(error).startswith("vocab_size"):
            raise
        reranker = weightless_reranker(model, topology, mesh, ShardingRules(vocab=None), **arguments)
        size = reranker.model.config.vocab_size
        notes.append(f"the vocabulary of {size} does not divide over {mesh}: replicated (--replicate vocab)")
    return reranker, tuple(notes)


def _try(
    reranker: WeightlessReranker,
    topology: Topology,
    workload: Workload,
    mesh: str,
    notes: Sequence[str],
    *,
    only_main: bool = False,
    known: MeshPlan | None = None,
) -> MeshPlan:
    """Compile the job's shapes on one mesh, or only that with most of the work (whose step then stands for all)."""
    memory = topology.chip.memory
    parameter_bytes = reranker.parameter_bytes
    result = MeshPlan(mesh, tuple(notes), parameter_bytes=parameter_bytes)
    if parameter_bytes > memory:
        refused = f"its parameters take {parameter_bytes / GIB:.2f} GiB of a device's {memory / GIB:.2f} GiB"
        return replace(result, refused=refused)
    shard = workload.shard(reranker)
    prepared = reranker.plan(shard)
    options = prepared.call.options(shard, [shape.length for shape in prepared.table])
    counts = Counter(step.shape for step in prepared.steps)
    work = {shape: times * shape.tokens for shape, times in counts.items()}
    total = sum(work.values())
    main = max(work, key=lambda shape: work[shape])
    longest = max(counts, key=lambda shape: (shape.length, shape.rows))
    chosen = [main] if only_main else [shape for shape in sorted(counts) if work[shape] >= SHARE * total]
    chosen += [] if only_main or longest in chosen or longest.length == main.length else [longest]
    scale = total / sum(work[shape] for shape in chosen)
    compiled = {} if known is None else {step.shape: step for step, _ in known.steps.values()}
    budget = None if known is None else known.budget
    steps: dict[Shape, tuple[StepPlan, float]] = {}
    notes = list(notes)
    for shape in chosen:
        times, fitted = scale * counts[shape] / len(shard), shape
        while fitted not in compiled:
            smaller = smaller_steps(fitted, reranker.mesh.shape[DATA])
            if budget is None or fitted.tokens <= budget or smaller is None:
                try:
                    compiled[fitted] = plan_step(reranker, topology, fitted, options(fitted.length))
                    break
                except DoesNotFit as error:
                    needed = "more than" if error.needed is None else f"{error.needed / GIB:.2f} GiB of"
                    reason = (
                        f"a step of {fitted.rows} x {fitted.length} takes {needed} a device's {memory / GIB:.2f} GiB"
                    )
                if smaller is None:
                    return replace(result, notes=tuple(notes), refused=reason)
                notes.append(f"{reason}: cut into steps of {smaller.rows} rows, as scoring does")
                budget = fitted.tokens // 2
            times *= fitted.rows / smaller.rows
            fitted = smaller
        steps[fitted] = (compiled[fitted], times + steps[fitted][1] if fitted in steps else times)
    return replace(result, notes=tuple(notes), steps=steps, budget=budget)


def _parts(mesh: str) -> int:
    found = [part.partition("=")[2] for part in mesh.split(",") if part.startswith("model=")]
    return int(found[0]) if found and found[0].isdecimal() else 1


def _fastest(tried: Sequence[MeshPlan]) -> MeshPlan:
    """Of the meshes that are about as fast as the fastest, the one that splits the model least."""
    fitting = [each for each in tried if not each.refused]
    least = min(each.seconds_per_pair for each in fitting)
    return next(each for each in fitting if each.seconds_per_pair <= ABOUT_AS_FAST * least)


def _unbeatable(mesh: MeshPlan) -> str:
    """Why no mesh that splits the model further can be faster than this one; empty where it may be."""
    if mesh.refused:
        return ""
    if not mesh.pairs_per_second:
        return f"nothing is known of the speed, and {mesh.mesh} fits"
    return (
        f"{mesh.mesh} is bound by matrix products, and here each device has as many" if mesh.bound == "matrix" else ""
    )


def _slower(mesh: MeshPlan, best: MeshPlan | None) -> str:
    if best is None or not best.pairs_per_second:
        return "the model is split further than it need be"
    return f"at most {mesh.pairs_per_second:,.0f} pairs/s, bound by {mesh.bound}, and the model is split further"
