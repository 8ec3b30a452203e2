"""Tells a device that runs out of memory from other errors of XLA."""

import jax


def is_out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether a program, or what it was to run on, did not fit into a device's memory. XLA's errors carry their status
    in the message alone."""
    return "RESOURCE_EXHAUSTED" in str(error)
