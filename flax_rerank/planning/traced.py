"""What a traced step computes: for machines that nothing can be compiled for here."""

import math
from collections.abc import Iterator
from typing import Any

from flax_rerank.planning.analysis import Counts, Product


def count_traced(jaxpr: Any, devices: int) -> Counts:
    """Count the matrix products of a step, shared evenly among devices that only split the batch.

    Bytes are those of operands and results: each product reads its weights and activations from memory and writes
    its result back, and everything else is fused into them.
    """
    products = []
    moved = 0.0
    for equation, times in _equations(jaxpr, 1):
        if equation.primitive.name != "dot_general":
            continue
        left, right = (each.aval for each in equation.invars)
        result = equation.outvars[0].aval
        inner = math.prod(left.shape[axis] for axis in equation.params["dimension_numbers"][0][0])
        dtypes = tuple(each.dtype.name for each in (left, right))
        products.append(Product(times, 2.0 * math.prod(result.shape) * inner / devices, dtypes, "dot_general"))
        batch = equation.params["dimension_numbers"][1][0]
        # Without a batch axis the right operand is a weight, which every device reads as a whole.
        moved += times * (_bytes(left) + _bytes(result) + _bytes(right) * (1 if batch else devices)) / devices
    return Counts(sum(each.times * each.flops for each in products), moved, tuple(products), ())


def _bytes(array: Any) -> int:
    return math.prod(array.shape) * array.dtype.itemsize


def _equations(jaxpr: Any, times: int) -> Iterator[tuple[Any, int]]:
    for equation in jaxpr.eqns:
        yield equation, times
        inner = times * equation.params["length"] if equation.primitive.name == "scan" else times
        for value in equation.params.values():
            for called in value if isinstance(value, tuple | list) else (value,):
                called = getattr(called, "jaxpr", called)
                if hasattr(called, "eqns"):
                    yield from _equations(called, inner)
