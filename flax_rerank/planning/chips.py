"""Peaks of chips, from the makers' public specifications. Dense products in bfloat16, decimal units."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One chip, as a scheduler rents it.

    Attributes:
        name: what the names of topologies begin with.
        platform: "tpu", "gpu" or "cpu".
        memory: bytes that a program may use.
        flops: bfloat16 operations a second.
        float32_flops: float32 operations a second, at full precision.
        bandwidth: bytes a second between the chip and its memory.
        link_bandwidth: bytes a second that one link to a neighbour sends.
        links: how many there are on a chip; in small slices some lead nowhere.
    """

    name: str
    platform: str
    memory: float
    flops: float
    float32_flops: float
    bandwidth: float
    link_bandwidth: float
    links: int

    def peak(self, bits: int) -> float:
        """Operations a second on numbers of so many bits."""
        return self.float32_flops if bits >= 32 else self.flops


# TPUs: peak compute, bandwidth and interconnect (its total over the links of a chip) are the key specifications in
# https://cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e. A product in full float32 takes six passes in bfloat16
# (precision "highest"). Memory is what libtpu's compiler lets a program have of the 32, 16, 95 and 32 GB.
# GPUs: data sheets of the SXM versions, https://www.nvidia.com/en-us/data-center/a100, /h100 and /h200; float32 is
# that of the units for it, not TF32. Memory: nine tenths, the rest is for the driver and what is not on the roofline.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", 30.75 * GIB, 275e12, 275e12 / 6, 1200e9, 2400e9 / 8 / 6, 6),
        Chip("v5e", "tpu", 15.75 * GIB, 197e12, 197e12 / 6, 819e9, 1600e9 / 8 / 4, 4),
        Chip("v5p", "tpu", 95.74 * GIB, 459e12, 459e12 / 6, 2765e9, 4800e9 / 8 / 6, 6),
        Chip("v6e", "tpu", 31.25 * GIB, 918e12, 918e12 / 6, 1638e9, 3200e9 / 8 / 4, 4),
        Chip("a100", "gpu", 0.9 * 80e9, 312e12, 19.5e12, 2039e9, 0, 0),
        Chip("h100", "gpu", 0.9 * 80e9, 989e12, 67e12, 3350e9, 0, 0),
        Chip("h200", "gpu", 0.9 * 141e9, 989e12, 67e12, 4800e9, 0, 0),
    )
}
