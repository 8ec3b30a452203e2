"""The least time of a step (Williams et al., 2009)."""

from dataclasses import dataclass

from flax_rerank.planning.analysis import Collective
from flax_rerank.planning.topology import Topology


@dataclass(frozen=True)
class Counts:
    """What one device does in one step.

    Attributes:
        flops: operations of matrix products.
        bytes: read from and written to the device's main memory.
        collectives: what it exchanges with other devices.
    """

    flops: float
    bytes: float
    collectives: tuple[Collective, ...] = ()

    @property
    def sent_bytes(self) -> float:
        return sum(each.sent_bytes for each in self.collectives)


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step at the peak of each part of the machine. The parts work at the same time, so the largest is a
    lower bound: element-wise work, launches and waiting come on top."""

    matrix: float
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        return max(self.matrix, self.memory, self.interconnect)

    @property
    def bound(self) -> str:
        """The part that takes longest."""
        return max(("matrix", "memory", "interconnect"), key=lambda part: getattr(self, part))


def roofline(counts: Counts, topology: Topology, bits: int) -> Roofline:
    """The bounds of a step.

    Args:
        counts: what one device does.
        bits: of the numbers that are multiplied.
    """
    chip = topology.chip
    sent = counts.sent_bytes / (chip.link_bandwidth * max(topology.links, 1)) if counts.sent_bytes else 0.0
    return Roofline(counts.flops / chip.peak(bits), counts.bytes / chip.bandwidth, sent)
