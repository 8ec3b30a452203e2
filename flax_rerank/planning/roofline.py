"""How long a step takes at least (Williams et al., 2009)."""

from dataclasses import dataclass

from flax_rerank.planning.analysis import Counts
from flax_rerank.planning.topology import Topology


@dataclass(frozen=True)
class Roofline:
    """Seconds that a step takes at the peak of each part of the machine; they work at the same time, so that the
    largest is a bound. Element-wise work, launches and what the parts wait for each other come on top."""

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
