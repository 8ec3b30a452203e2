"""What tests look for in a compiled program: its matrix products, and copies of weights."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flax_rerank.models.splash import kernel_scores
from flax_rerank.planning.analysis import FREE
from flax_rerank.planning.hlo import Computation, Instruction


@dataclass(frozen=True)
class Product:
    """One matrix product, or all those of one of our kernels: `flops` each time it runs, `dtypes` of its operands."""

    times: float
    flops: float
    dtypes: tuple[str, ...]
    by_kernel: bool = False


def products_of(program: Computation, *, causal: bool = False) -> list[Product]:
    """All products; `causal` is whether the attention of our kernels is."""
    return [product for each, times in program.executed() for product in _products(each, times, causal)]


def flops_of(program: Computation, *, causal: bool = False) -> float:
    return sum(each.times * each.flops for each in products_of(program, causal=causal))


def copies_of(program: Computation, dims: Sequence[tuple[int, ...]]) -> list[Instruction]:
    """Instructions that write an array of one of these shapes (axes of size one aside) to main memory: a program that
    takes weights as they lie has none."""
    wanted = {_without_ones(each) for each in dims}
    found = []
    for each, _ in program.executed():
        # What a copy-start names besides its result is its operand.
        written = each.result[:1] if each.opcode == "copy-start" else each.result
        if each.opcode not in (*FREE, "slice-start"):
            found += [each for array in written if array.space == 0 and _without_ones(array.dims) in wanted]
    return found


def _without_ones(dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in dims if size != 1)


def _products(each: Instruction, times: float, causal: bool) -> list[Product]:
    """The matrix products of an instruction, and of all that are fused into it."""
    if each.opcode == "fusion":
        inside = each.called[0].instructions.values()
        return [product for inner in inside for product in _products(inner, times, causal)]
    count = {"dot": _dot, "convolution": _convolution, "custom-call": _kernel}.get(each.opcode)
    operands = [operand.result[0] for operand in each.operands if count]
    flops = count(each, operands, causal) if count else 0
    dtypes = tuple(operand.dtype for operand in operands[:2])
    return [Product(times, flops, dtypes, each.opcode == "custom-call")] if flops else []


def _kernel(call, operands, causal):
    """Attention, of which the queries, [B, N, L, H], are the first operand that is not made of integers. No window."""
    if "tpu_custom_call" not in call.attributes:
        return 0
    *rows, length, size = next(operand.dims for operand in operands if operand.dtype in ("bf16", "f32"))
    return 4.0 * math.prod(rows) * size * kernel_scores(length, causal, 0)


def _dot(dot, operands, causal):
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)[1]
    inner = math.prod(operands[0].dims[int(axis)] for axis in contracted.split(",") if axis)
    return 2.0 * math.prod(dot.result[0].dims) * inner


def _convolution(convolution, operands, causal):
    """TPUs write every matrix product as a convolution; axes of a batch become dilated spatial axes, of which each
    output position meets one input."""
    left, right = (operand.dims for operand in operands)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    out = convolution.result[0].dims
    flops = 2.0 * out[labels[3].index("b")] * out[labels[3].index("f")] * right[labels[2].index("i")]
    described = re.search(r"window=\{([^}]*)\}", convolution.attributes)
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", described[1])) if described else {}
    spatial = [label for label in labels[1] if label.isdigit()]
    for axis, label in enumerate(sorted(spatial, key=int)):
        values = {key: value.split("x")[axis] for key, value in window.items()}
        flops *= _meetings(left[labels[1].index(label)], out[labels[3].index(label)], values)
    return flops


def _meetings(size: int, outputs: int, window: dict[str, str]) -> int:
    """How often a kernel position meets an input position, over all output positions of one axis."""
    width, stride = int(window["size"]), int(window.get("stride", 1))
    dilation, spread = int(window.get("lhs_dilate", 1)), int(window.get("rhs_dilate", 1))
    low = int(window.get("pad", "0_0").split("_")[0])
    position = np.arange(outputs)[:, None] * stride + np.arange(width)[None, :] * spread - low
    return int(np.count_nonzero((position >= 0) & (position % dilation == 0) & (position < (size - 1) * dilation + 1)))
