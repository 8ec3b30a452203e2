import jax
import jax.numpy as jnp
import pytest
from compiled_programs import flops_of

from flax_rerank.planning import hlo

# As TPUs have it: no trip count beside the loop, a bound that comes in with the carry, memory on the chip (S(1)).
LOOP = """HloModule step, is_scheduled=true

%body (carry: (s32[], f32[8,128], s32[])) -> (s32[], f32[8,128], s32[]) {
  %carry = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:T(128)}) parameter(0)
  %index = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %x = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%carry), index=1
  %end = s32[]{:T(128)} get-tuple-element(%carry), index=2
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%index, %one)
  %doubled = f32[8,128]{1,0:T(8,128)S(1)} add(%x, %x), metadata={op_name="jit(step)/while/body/add" stack_frame_id=3}
  ROOT %tuple = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:T(128)}) tuple(%next, %doubled, /*index=2*/%end)
}

%condition (carry.1: (s32[], f32[8,128], s32[])) -> pred[] {
  %carry.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:T(128)}) parameter(0)
  %index.1 = s32[]{:T(128)} get-tuple-element(%carry.1), index=0
  %end.1 = s32[]{:T(128)} get-tuple-element(%carry.1), index=2
  ROOT %less = pred[]{:T(512)} compare(%index.1, %end.1), direction=LT
}

ENTRY %main (x.2: f32[8,128]) -> f32[8,128] {
  %x.2 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %first = s32[]{:T(128)} constant(3)
  %copied = s32[]{:T(128)} copy(%first)
  %last = s32[]{:T(128)} constant(20)
  %carry.2 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, s32[]{:T(128)}) tuple(%copied, %x.2, %last)
  %loop = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:T(128)}) while(%carry.2), condition=%condition, body=%body
  ROOT %result = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_instructions_of_a_loop_run_as_often_as_it_does():
    program = hlo.parse(LOOP)
    times = {each.name: times for each, times in program.executed()}
    assert times["doubled"] == 17
    assert times["copied"] == 1


def test_results_operands_and_calls_are_read():
    condition, body = hlo.parse(LOOP).instructions["loop"].called
    assert condition.root.name == "less"
    doubled = body.instructions["doubled"]
    assert doubled.result == (hlo.Array("f32", (8, 128), 1),)
    assert doubled.result[0].bytes == 4096
    assert [each.name for each in doubled.operands] == ["x", "x"]
    assert [each.name for each in body.instructions["x"].users] == ["doubled"]
    assert [each.name for each in body.root.operands] == ["next", "doubled", "end"]
    assert [array.dims for array in body.root.result] == [(), (8, 128), ()]


def test_trips_that_cannot_be_told_are_an_error():
    program = hlo.parse(LOOP.replace("constant(20)", "parameter(1)"))
    with pytest.raises(ValueError, match="trips of loop are not known: a bound of it is a parameter"):
        list(program.executed())


def test_branches_share_the_trips():
    def step(kinds, x):
        def body(index, x):
            return jax.lax.switch(kinds[index], [lambda x: x @ x, lambda x: (x @ x) @ x], x)

        return jax.lax.fori_loop(0, 6, body, x)

    shapes = jax.ShapeDtypeStruct((6,), jnp.int32), jax.ShapeDtypeStruct((64, 64), jnp.float32)
    program = hlo.parse(jax.jit(step).lower(*shapes).compile().as_text())
    # Three of one product, three of two.
    assert flops_of(program) == 3 * 3 * 2 * 64**3


def test_a_program_that_was_compiled_here():
    def step(x):
        return jax.lax.fori_loop(2, 9, lambda _, x: jnp.tanh(x @ x), x)

    program = hlo.parse(jax.jit(step).lower(jnp.zeros((64, 64))).compile().as_text())
    assert {times for _, times in program.executed()} == {1, 7}
