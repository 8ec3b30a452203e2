"""A plan as text, and as JSON."""

import math
from typing import Any

from flax_rerank.planning.plan import MeshPlan, Plan
from flax_rerank.planning.step import StepPlan
from flax_rerank.planning.topology import GIB, Topology
from flax_rerank.planning.training import TrainingPlan

COLUMNS = (
    "rows x length", "arguments", "temporaries", "total GiB", "of GiB", "TFLOP", "GB moved", "collectives", "GB sent",
    "compile s", "at least ms", "bound by", "pairs/s",
)  # fmt: skip


def as_text(plan: Plan, nearest: Plan | None = None) -> str:
    """The steps of each shape, the other meshes, and what the job takes; for a model that does not fit, the nearest
    slice that it fits."""
    topology, best = plan.topology, plan.best
    lines = [f"{plan.model} in {plan.dtype} on {topology.name}: {topology.chips} chips, {plan.workload.describe}", ""]
    if best is None:
        lines.append(f"It fits no mesh of {topology.name}:")
    else:
        lines += [f"Best mesh: {best.mesh}. Of each device, in a step:", ""]
        lines += _table([COLUMNS, *(_row(step, topology) for step, _ in best.steps.values())])
        lines += [f"note: {note}" for note in best.notes]
        lines += ["", "Other meshes:"] if plan.others else []
    known = best.notes if best else []
    for each in plan.others:
        lines.append(f"  {each.mesh}: {'; '.join((each.refused, *(n for n in each.notes if n not in known)))}")
    if nearest is not None and nearest.best is not None:
        lines += ["", f"It fits {nearest.topology.name} with {nearest.best.mesh}, the nearest that was found."]
    elif best is None:
        lines += ["", "It fits no larger slice that was tried: take a chip with more memory, or shorter inputs."]
    elif best.pairs_per_second:
        rows = {"pairs/s at most": f"{best.pairs_per_second:,.0f}", "bound by": best.bound}
        lines += ["", "The job:", "", *_totals(rows, "pairs", plan.workload.pairs, plan)]
    return "\n".join(lines)


def as_dict(plan: Plan, nearest: Plan | None = None) -> dict[str, Any]:
    """All figures, for JSON. Bytes and operations are those of one device in one step; seconds are lower bounds."""
    topology = plan.topology
    return {
        "model": plan.model,
        "topology": topology.name,
        "chips": topology.chips,
        "dtype": plan.dtype,
        "lengths": plan.workload.describe,
        "fits": plan.best is not None,
        "best": plan.best and _mesh(plan, plan.best),
        "others": [_mesh(plan, each) for each in plan.others],
        "nearest": nearest and nearest.best and {"topology": nearest.topology.name, "mesh": nearest.best.mesh},
        "job": {"pairs": plan.workload.pairs} | costs(plan),
    }


def training_as_text(plan: TrainingPlan) -> str:
    """The step of a training, the other meshes, and what the run takes."""
    topology, step = plan.topology, plan.step
    lines = [
        f"{plan.model} in {plan.dtype} on {topology.name}: {topology.chips} chips, {plan.training.describe()}",
        "",
    ]
    if step is None:
        lines.append(f"It fits no mesh of {topology.name}: take gradient checkpointing, LoRA, or a smaller batch")
    else:
        lines += [f"Mesh: {plan.mesh}. Of each device, in a step of {plan.examples_per_step} examples:", ""]
        lines += _table([COLUMNS, _row(step, topology)])
    lines += ["", "Other meshes:"] if plan.others else []
    lines += [f"  {mesh}: {reason}" for mesh, reason in plan.others.items()]
    if step is not None and step.seconds:
        rows = {"examples/s at most": f"{plan.examples_per_step / step.seconds:,.1f}", "bound by": step.bound}
        lines += ["", "The training:", "", *_totals(rows, "steps", plan.steps, plan)]
    return "\n".join(lines)


def training_as_dict(plan: TrainingPlan) -> dict[str, Any]:
    """All figures of a training, for JSON; see `as_dict`."""
    topology, step = plan.topology, plan.step
    return {
        "model": plan.model,
        "topology": topology.name,
        "chips": topology.chips,
        "dtype": plan.dtype,
        "training": plan.training.describe(),
        "fits": step is not None,
        "mesh": plan.mesh,
        "step": step and _step(topology, step),
        "others": plan.others,
        "job": {"examples": plan.training.examples, "examples_per_step": plan.examples_per_step, "steps": plan.steps}
        | costs(plan),
    }


def costs(plan: Plan | TrainingPlan) -> dict[str, float | None]:
    """Lower bounds of what a job or a run takes and costs; None for what does not follow from what is known."""
    hours, price = plan.hours, plan.price
    chip_hours = None if hours is None else hours * plan.topology.chips
    total = None if chip_hours is None or price is None else chip_hours * price
    return {"hours": hours, "chip_hours": chip_hours, "price_per_chip_hour": price, "price": total}


def _mesh(plan: Plan, mesh: MeshPlan) -> dict[str, Any]:
    return {
        "mesh": mesh.mesh,
        "refused": mesh.refused or None,
        "notes": mesh.notes,
        "parameter_bytes": mesh.parameter_bytes,
        "pairs_per_second": mesh.pairs_per_second or None,
        "steps": [_step(plan.topology, step) | {"per_pair": times} for step, times in mesh.steps.values()],
    }


def _step(topology: Topology, step: StepPlan) -> dict[str, Any]:
    memory, available = step.memory, topology.chip.memory
    finite = math.isfinite(available)
    return {
        "rows": step.shape.rows,
        "length": step.shape.length,
        "argument_bytes": memory and memory.arguments,
        "temporary_bytes": memory and memory.temporaries,
        "result_bytes": memory and memory.results,
        "device_memory_bytes": available if finite else None,
        "flops": step.flops,
        "bytes": step.bytes,
        "collectives": [
            {"kind": each.kind, "times": each.times, "devices": each.devices, "sent_bytes": each.sent_bytes}
            for each in step.collectives
        ],
        "compile_seconds": step.compile_seconds,
        "seconds": step.limits if finite else None,
        "bound": step.bound if finite else None,
        "pairs_per_second": step.pairs_per_second or None,
    }


def _row(step: StepPlan, topology: Topology) -> tuple[str, ...]:
    memory = step.memory
    sizes = (memory.arguments, memory.temporaries, memory.total, topology.chip.memory) if memory else ()
    speed = (f"{step.seconds * 1e3:.1f}", step.bound, f"{step.pairs_per_second:,.0f}")
    return (
        f"{step.shape.rows} x {step.shape.length}",
        *([f"{size / GIB:.2f}" for size in sizes] or ["-"] * 4),
        f"{step.flops / 1e12:.2f}",
        f"{step.bytes / 1e9:.1f}",
        f"{sum(each.times for each in step.collectives)}",
        f"{step.sent_bytes / 1e9:.2f}",
        "-" if step.compile_seconds is None else f"{step.compile_seconds:.0f}",
        *(speed if step.seconds else ["-"] * 3),
    )


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _totals(rows: dict[str, str], what: str, count: int | None, plan: Plan | TrainingPlan) -> list[str]:
    """A lower bound of what `count` pairs or steps take."""
    found = costs(plan)
    if plan.hours is not None:
        rows = {what: f"{count:,}"} | rows
        rows |= {"hours at least": f"{plan.hours:.2f}", "chip hours": f"{found['chip_hours']:.2f}"}
    if found["price"] is not None:
        rows |= {"a chip hour costs": f"{plan.price:,.2f}", "price": f"{found['price']:,.2f}"}
    return _table([tuple(rows), tuple(rows.values())])
