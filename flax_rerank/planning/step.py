"""One step of a shape on one mesh: compiled, measured, bounded."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from flax_rerank.batching import Shape
from flax_rerank.planning import hlo
from flax_rerank.planning.abstract import WeightlessReranker
from flax_rerank.planning.analysis import Counts, count
from flax_rerank.planning.roofline import Roofline, roofline
from flax_rerank.planning.topology import Topology
from flax_rerank.planning.traced import count_traced
from flax_rerank.scoring import OUT_OF_MEMORY

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class DoesNotFit(Exception):
    """A step takes more memory than a device has.

    Attributes:
        needed: bytes, as far as the compiler says; None where it does not.
    """

    def __init__(self, needed: float | None) -> None:
        super().__init__(needed)
        self.needed = needed


@dataclass(frozen=True)
class Memory:
    """Bytes on each device."""

    arguments: int
    temporaries: int
    results: int

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.results


@dataclass(frozen=True)
class StepPlan:
    """What one step takes.

    Attributes:
        memory: None where nothing was compiled.
        compile_seconds: None where nothing was compiled.
        text: the compiled program; empty where nothing was compiled.
    """

    shape: Shape
    memory: Memory | None
    counts: Counts
    roofline: Roofline
    compile_seconds: float | None
    text: str

    @property
    def pairs_per_second(self) -> float:
        """With all rows filled."""
        return self.shape.rows / self.roofline.seconds if self.roofline.seconds else 0.0


def plan_step(reranker: WeightlessReranker, topology: Topology, shape: Shape, options: Mapping[str, Any]) -> StepPlan:
    """Compile a step for a topology and count what it does. For GPUs it is only traced.

    Args:
        reranker: on a mesh of the topology's devices.
        options: keyword arguments of the model.

    Raises:
        DoesNotFit: its memory is more than a device's.
    """
    traced = reranker.trace(shape, options)
    bits = reranker.dtype.itemsize * 8
    if topology.chip.platform == "gpu":
        counts = count_traced(traced.jaxpr, len(topology.devices))
        return StepPlan(shape, None, counts, roofline(counts, topology, bits), None, "")
    lowered = traced.lower()
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        raise DoesNotFit(_needed(str(error))) from error
    seconds = time.perf_counter() - start
    analysis = compiled.memory_analysis()
    memory = Memory(
        analysis.argument_size_in_bytes,
        analysis.temp_size_in_bytes,
        analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
    )
    if memory.total > topology.chip.memory:
        raise DoesNotFit(memory.total)
    text = compiled.as_text()
    counts = count(hlo.parse(text))
    return StepPlan(shape, memory, counts, roofline(counts, topology, bits), seconds, text)


def _needed(message: str) -> float | None:
    found = re.search(r"[Uu]sed ([\d.]+)([KMGT]?) of", message) or re.search(
        r"temporaries \(([\d.]+)([KMGT]?)\)", message
    )
    return float(found[1]) * UNITS[found[2]] if found else None
