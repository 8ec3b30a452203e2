"""One step of a shape on one mesh: compiled, measured, bounded by the roofline (Williams et al., 2009)."""

import re
import time
from dataclasses import dataclass, replace

import jax
from jax.sharding import Mesh

from flax_rerank.batching import Shape
from flax_rerank.models.attention import SPLASH_FROM, scores_of
from flax_rerank.models.splash import kernel_scores, keys_read_again
from flax_rerank.operations import Sizes, count_work, passes, sizes_of
from flax_rerank.out_of_memory import is_out_of_memory
from flax_rerank.planning import hlo
from flax_rerank.planning.abstract import AbstractScorer
from flax_rerank.planning.analysis import Collective, bytes_moved, collectives_of
from flax_rerank.planning.topology import GIB, Topology
from flax_rerank.scoring import Static
from flax_rerank.sharding import DATA, ShardingRules

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SCORE_BYTES = 4  # attention scores are float32 until they are normalised


class DoesNotFit(Exception):
    """A step takes more memory than a device has."""

    def __init__(self, shape: Shape, needed: float | None, available: float) -> None:
        takes = "more than" if needed is None else f"{needed / GIB:.2f} GiB of"
        step = f"a step of {shape.rows} x {shape.length}"
        super().__init__(f"{step} takes {takes} a device's {available / GIB:.2f} GiB")


@dataclass(frozen=True)
class Memory:
    """Bytes of a program on each device."""

    arguments: int
    temporaries: int
    results: int

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.results


@dataclass(frozen=True)
class StepPlan:
    """What one step takes on each device.

    Attributes:
        flops: operations of matrix products.
        bytes: read from and written to main memory.
        limits: seconds at the peak of each part of the device: matrix, memory, interconnect. They work at the same
            time, so the largest is a lower bound: element-wise work, launches and waiting come on top.
        memory, compile_seconds, compiled: None for a GPU.
    """

    shape: Shape
    flops: float
    bytes: float
    limits: dict[str, float]
    collectives: tuple[Collective, ...] = ()
    memory: Memory | None = None
    compile_seconds: float | None = None
    compiled: jax.stages.Compiled | None = None

    @property
    def sent_bytes(self) -> float:
        return sum(each.sent_bytes for each in self.collectives)

    @property
    def seconds(self) -> float:
        return max(self.limits.values())

    @property
    def bound(self) -> str:
        """The part of the device that takes longest."""
        return max(self.limits, key=self.limits.__getitem__)

    @property
    def pairs_per_second(self) -> float:
        """With all rows filled; 0 if the device's speed is not known."""
        return self.shape.rows / self.seconds if self.seconds else 0.0


def plan_step(scorer: AbstractScorer, topology: Topology, shape: Shape, static: Static) -> StepPlan:
    """Compile a step for a topology and count what it does. For GPUs nothing is compiled.

    Args:
        scorer: on a mesh of the topology's devices.
        static: the model's static arguments.

    Raises:
        DoesNotFit: the step takes more memory than a device has.
    """
    platform, itemsize = topology.chip.platform, scorer.dtype.itemsize
    sizes = sizes_on_a_device(
        sizes_of(scorer.spec.config, scorer.spec.readout), scorer.mesh, scorer.spec.settings.sharding_rules
    )
    rows = shape.rows // scorer.mesh.shape[DATA]
    readout, compression = static
    run = (sizes, shape.length, readout.layers[-1], compression.at if compression else ())
    work = count_work(*run, count_scores=scores_on_tpu if platform == "tpu" else scores_of)
    flops = rows * work.operations
    if platform == "gpu":
        moved = itemsize * (work.weights + rows * (work.activations + work.scores)) + SCORE_BYTES * rows * work.scores
        return StepPlan(shape, flops, moved, limits(topology, 8 * itemsize, flops, moved))
    again = 0
    if platform == "tpu":
        keys = sum(
            keys_read_again(each.length, sizes.heads, sizes.kv_heads, sizes.causal, each.window)
            for each in passes(*run)
            if each.outputs > 1
        )
        again = 2 * rows * keys * sizes.head_dim * itemsize  # keys, and as many values
    return measure(scorer.trace(shape, static), topology, shape, flops, 8 * itemsize, again)


def measure(
    traced: jax.stages.Traced, topology: Topology, shape: Shape, flops: float, bits: int, again: int = 0
) -> StepPlan:
    """Compile a traced step, and read from the program what it moves and sends.

    Args:
        shape: of its batch, on all devices.
        flops: operations of one device.
        bits: of the numbers that are multiplied.
        again: bytes that kernels read more than once, which the program does not say.

    Raises:
        DoesNotFit: the step takes more memory than a device has.
    """
    start = time.perf_counter()
    compiled, memory = _compile(traced, shape, topology.chip.memory)
    seconds = time.perf_counter() - start
    program = hlo.parse(compiled.as_text() or "")
    moved, collectives = bytes_moved(program) + again, collectives_of(program)
    least = limits(topology, bits, flops, moved, sum(each.sent_bytes for each in collectives))
    return StepPlan(shape, flops, moved, least, collectives, memory, seconds, compiled)


def limits(topology: Topology, bits: int, flops: float, moved: float, sent: float = 0.0) -> dict[str, float]:
    """Seconds of a step at the peak of each part of a device.

    Args:
        bits: of the numbers that are multiplied.
        flops: operations of one device.
        moved, sent: bytes between it and its memory, and to other devices.
    """
    chip = topology.chip
    return {
        "matrix": flops / (chip.float32_flops if bits >= 32 else chip.flops),
        "memory": moved / chip.bandwidth,
        "interconnect": sent / (chip.link_bandwidth * max(topology.links, 1)) if sent else 0.0,
    }


def scores_on_tpu(length: int, causal: bool, window: int) -> int:
    """Attention scores that each head computes on a TPU."""
    return (kernel_scores if length >= SPLASH_FROM else scores_of)(length, causal, window)


def sizes_on_a_device(sizes: Sizes, mesh: Mesh, rules: ShardingRules) -> Sizes:
    """The part of a layer that each device of a mesh computes."""

    def part(size: int, mesh_axis: str | None) -> int:
        parts = 1 if mesh_axis is None else mesh.shape[mesh_axis]
        return size // parts if size % parts == 0 else size  # key/value heads that do not divide are replicated

    return replace(
        sizes,
        hidden=part(sizes.hidden, rules.embed),
        heads=part(sizes.heads, rules.heads),
        kv_heads=part(sizes.kv_heads, rules.kv_heads),
        intermediate=part(sizes.intermediate, rules.mlp),
    )


def _compile(traced: jax.stages.Traced, shape: Shape, available: float) -> tuple[jax.stages.Compiled, Memory]:
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DoesNotFit(shape, bytes_needed(str(error)), available) from error
    analysis = compiled.memory_analysis()
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    memory = Memory(analysis.argument_size_in_bytes, analysis.temp_size_in_bytes, results)
    if memory.total > available:
        raise DoesNotFit(shape, memory.total, available)
    return compiled, memory


def bytes_needed(message: str) -> float | None:
    """Bytes that a program needs, where the compiler's message says so."""
    amount = r"([\d.]+)([KMGT]?)"
    found = re.search(f"[Uu]sed {amount} of", message) or re.search(rf"temporaries \({amount}\)", message)
    return float(found[1]) * UNITS[found[2]] if found else None
