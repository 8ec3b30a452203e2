import jax
import jax.numpy as jnp
from compiled_programs import copies_of, flops_of, products_of
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flax_rerank.planning import hlo
from flax_rerank.planning.analysis import Collective, bytes_moved, collectives_of

# A batch of products (16 of [512, 64] x [64, 512], in 16 rows) as TPUs write it: heads are a dilated spatial axis.
BATCHED = """HloModule step

ENTRY %main (a: bf16[16,512,16,64], b: bf16[16,512,16,64]) -> f32[16,16,512,512] {
  %a = bf16[16,512,16,64]{3,1,2,0:T(8,128)(2,1)S(1)} parameter(0)
  %b = bf16[16,512,16,64]{3,1,2,0:T(8,128)(2,1)} parameter(1)
  ROOT %p = f32[16,16,512,512]{2,3,1,0:T(8,128)} convolution(%a, %b), window={size=16x16 stride=15x15 lhs_dilate=16x16}, dim_labels=0b1f_0o1i->01bf
}
"""  # noqa: E501
STACK = """HloModule step

%fused (stack: bf16[24,256,512], index: s32[], x: bf16[8,256]) -> bf16[8,512] {
  %stack = bf16[24,256,512]{2,1,0} parameter(0)
  %index = s32[] parameter(1)
  %zero = s32[] constant(0)
  %layer = bf16[1,256,512]{2,1,0} dynamic-slice(%stack, %index, %zero, %zero), dynamic_slice_sizes={1,256,512}
  %kernel = bf16[256,512]{1,0} bitcast(%layer)
  %x = bf16[8,256]{1,0} parameter(2)
  ROOT %y = bf16[8,512]{1,0} dot(%x, %kernel), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (p: bf16[24,256,512], i: s32[], v: bf16[8,256]) -> bf16[8,512] {
  %p = bf16[24,256,512]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %v = bf16[8,256]{1,0} parameter(2)
  ROOT %fusion = bf16[8,512]{1,0} fusion(%p, %i, %v), kind=kOutput, calls=%fused
}
"""


def test_products_of_a_batch_that_are_written_as_a_convolution():
    (product,) = products_of(hlo.parse(BATCHED))
    assert product.flops == 2 * 16 * 16 * 512 * 512 * 64
    assert product.dtypes == ("bf16", "bf16")


def test_memory_on_the_chip_is_not_counted():
    # One operand is on the chip, the other and the result are not.
    assert bytes_moved(hlo.parse(BATCHED)) == 16 * 512 * 16 * 64 * 2 + 16 * 16 * 512 * 512 * 4


def test_of_a_stack_the_layer_is_read():
    program = hlo.parse(STACK)
    assert bytes_moved(program) == 256 * 512 * 2 + 4 + 8 * 256 * 2 + 8 * 512 * 2
    assert flops_of(program) == 2 * 8 * 256 * 512


def test_copies_of_a_layer_or_of_the_stack_are_found():
    shapes = [(24, 256, 512), (256, 512)]
    assert copies_of(hlo.parse(STACK), shapes) == []
    copying = STACK.replace(
        "ROOT %fusion", "%copied = bf16[24,256,512]{1,2,0} copy(%p)\n  ROOT %fusion"
    )  # a stack with its axes exchanged
    assert [each.name for each in copies_of(hlo.parse(copying), shapes)] == ["copied"]


def test_what_a_device_of_a_ring_sends():
    ring = {"times": 3, "devices": 4, "operand_bytes": 800, "result_bytes": 400}
    assert Collective("all-reduce", **ring).sent_bytes == 3 * 900
    assert Collective("reduce-scatter", **ring).sent_bytes == 3 * 600
    assert Collective("all-gather", **ring).sent_bytes == 3 * 300


def test_collectives_of_a_program_that_was_compiled_here():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
    spec = {"x": ("data", "model"), "w": ("model", None), "y": ("data", None)}
    places = {name: NamedSharding(mesh, PartitionSpec(*axes)) for name, axes in spec.items()}
    x = jax.ShapeDtypeStruct((64, 512), jnp.float32, sharding=places["x"])
    w = jax.ShapeDtypeStruct((512, 128), jnp.float32, sharding=places["w"])
    compiled = jax.jit(lambda x, w: x @ w, out_shardings=places["y"]).lower(x, w).compile()
    program = hlo.parse(compiled.as_text())
    (found,) = collectives_of(program)
    assert (found.kind, found.times, found.devices) == ("all-reduce", 1, 4)
    assert found.operand_bytes == 32 * 128 * 4
    assert flops_of(program) == 2 * 64 * 512 * 128 / 8
