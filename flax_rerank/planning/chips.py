"""Peaks of chips, from the makers' public specifications. Dense products in bfloat16, decimal units."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One chip, as a scheduler rents it.

    Attributes:
        name: as topologies are named by it.
        platform: "tpu", "gpu" or "cpu".
        memory: bytes that a program may use.
        flops: bfloat16 operations a second.
        bandwidth: bytes a second between the chip and its memory.
        link_bandwidth: bytes a second that one link to a neighbour sends.
        links: how many there are on a chip; in small slices some lead nowhere.
    """

    name: str
    platform: str
    memory: float
    flops: float
    bandwidth: float
    link_bandwidth: float
    links: int

    def peak(self, bits: int) -> float:
        """Operations a second on numbers of so many bits. Products in full float32 take six passes in bfloat16 on a
        TPU (precision "highest"), and on a GPU the units for float32, which are about as slow."""
        return self.flops / (6 if bits >= 32 else 1)


# TPUs: peak compute, bandwidth and interconnect (its total over the links of a chip) are the key specifications in
# https://cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e. Memory is what libtpu's compiler lets a program have of
# the 32, 16, 95 and 32 GB.
# GPUs: data sheets of the SXM versions, https://www.nvidia.com/en-us/data-center/a100, /h100 and /h200; NVLink's total
# counts both directions. Memory: nine tenths, the rest is for the driver and what is not on the roofline.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", 30.5 * GIB, 275e12, 1200e9, 2400e9 / 8 / 6, 6),
        Chip("v5e", "tpu", 15.75 * GIB, 197e12, 819e9, 1600e9 / 8 / 4, 4),
        Chip("v5p", "tpu", 95.74 * GIB, 459e12, 2765e9, 4800e9 / 8 / 6, 6),
        Chip("v6e", "tpu", 31.25 * GIB, 918e12, 1640e9, 3584e9 / 8 / 4, 4),
        Chip("a100", "gpu", 0.9 * 80e9, 312e12, 2039e9, 300e9, 1),
        Chip("h100", "gpu", 0.9 * 80e9, 989e12, 3350e9, 450e9, 1),
        Chip("h200", "gpu", 0.9 * 141e9, 989e12, 4800e9, 450e9, 1),
    )
}
