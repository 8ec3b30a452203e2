"""The kernel against the plain attention, both compiled for a v5e chip: memory, and what they move."""

import jax
import jax.numpy as jnp
import pytest
from compiled_programs import flops_of
from jax.sharding import NamedSharding, PartitionSpec

from flax_rerank.models.attention import SPLASH_FROM, attention
from flax_rerank.models.splash import keys_read_again, splash_attention
from flax_rerank.planning import hlo
from flax_rerank.planning.analysis import bytes_moved
from flax_rerank.planning.topology import find_topology
from flax_rerank.sharding import make_mesh

pytestmark = pytest.mark.tpu_compile

TOKENS, HEADS, SIZE = 8192, 16, 64
PEAK_RATIO = 197e12 / 819e9  # operations for each byte, on a v5e


def compiled_for_v5e(attend, length):
    """Temporary bytes, and operations or their equal in bytes moved, whichever are more: the roofline."""
    mesh = make_mesh(find_topology("v5e:2x2").devices[:1], None)
    everywhere = NamedSharding(mesh, PartitionSpec())
    x = jax.ShapeDtypeStruct((TOKENS // length, length, HEADS * SIZE), jnp.bfloat16, sharding=everywhere)
    lengths = jax.ShapeDtypeStruct((TOKENS // length,), jnp.int32, sharding=everywhere)

    def step(query, key, value, lengths):
        heads = (each.reshape(*each.shape[:2], HEADS, SIZE) for each in (query, key, value))
        return attend(*heads, lengths).reshape(query.shape)

    program = jax.jit(step).lower(x, x, x, lengths).compile()
    read = hlo.parse(program.as_text())
    again = keys_read_again(length, HEADS, HEADS, causal=False, window=0) if attend is kernel else 0
    moved = bytes_moved(read) + TOKENS // length * again * 2 * SIZE * 2  # keys and values, in bfloat16
    return program.memory_analysis().temp_size_in_bytes, max(flops_of(read), moved * PEAK_RATIO)


def plain(query, key, value, lengths):
    mask = (jnp.arange(query.shape[1])[None] < lengths[:, None])[:, None]
    return attention(query, key, value, mask=mask, scale=SIZE**-0.5)


def kernel(query, key, value, lengths):
    return splash_attention(query, key, value, lengths=lengths, causal=False, window=0, scale=SIZE**-0.5)


@pytest.mark.parametrize(("length", "memory", "speed"), [(512, 5, 5), (1024, 10, 10), (8192, 100, 10)])
def test_the_kernel_wins_where_it_is_used(length, memory, speed):
    assert length >= SPLASH_FROM
    (plain_memory, plain_work), (kernel_memory, kernel_work) = (
        compiled_for_v5e(attend, length) for attend in (plain, kernel)
    )
    assert plain_memory > memory * kernel_memory
    assert plain_work > speed * kernel_work


def test_the_plain_way_wins_where_it_is_used():
    assert SPLASH_FROM > 128
    (plain_memory, plain_work), (kernel_memory, kernel_work) = (
        compiled_for_v5e(attend, 128) for attend in (plain, kernel)
    )
    assert plain_memory < kernel_memory
    assert plain_work < kernel_work
