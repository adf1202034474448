"""The cost of compiled programs: loops, bytes of main memory, collectives, custom kernels."""

import jax
import jax.numpy as jnp
import pytest

from tools.dryrun.cost import program_cost
from tools.dryrun.hlo import Program


def compiled(function, *shapes):
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()


def test_loops_count_as_often_as_they_run():
    def layers(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    def search(x, kernel):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 5, lambda x: jnp.tanh(x @ kernel), x)

    cost = program_cost(compiled(layers, (8, 32), (7, 32, 32)).as_text())
    assert cost.flops == 7 * (2 * 8 * 32 * 32 + 1)  # and the loop's counter
    # Each trip reads its own kernel of the seven, not all of them.
    assert 4 * 7 * 32 * 32 < cost.bytes < 5 * 4 * 7 * 32 * 32
    text = compiled(search, (8, 32), (32, 32)).as_text()
    assert [program_cost(text, unknown_trips=n).flops for n in (0, 1, 3)] == [0, 2 * 8 * 32 * 32, 3 * 2 * 8 * 32 * 32]


def test_without_loops_figures_are_xlas():
    def mlp(x, up, down):
        return jax.nn.relu(x @ up) @ down + x[:, ::-1]

    program = compiled(mlp, (16, 32), (32, 64), (64, 32))
    cost, analysis = program_cost(program.as_text()), program.cost_analysis()
    assert (cost.flops, cost.bytes) == (analysis["flops"], pytest.approx(analysis["bytes accessed"], rel=0.01))


HLO = """HloModule step, num_partitions=8

%add (l: bf16[], r: bf16[]) -> bf16[] {
  %l = bf16[] parameter(0)
  %r = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%l, %r)
}

%all-reduce-scatter (input: bf16[64,128]) -> bf16[16,128] {
  %input = bf16[64,128]{1,0} parameter(0)
  %zero.1 = s32[] constant(0)
  %all-reduce.2 = bf16[64,128]{1,0} all-reduce(%input), channel_id=3, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %part = bf16[16,128]{1,0} dynamic-slice(%all-reduce.2, %zero.1, %zero.1), dynamic_slice_sizes={16,128}
}

%begin (a: bf16[4,8,32,16], b: bf16[4,8,32,16]) -> f32[4,8,32,32] {
  %a = bf16[4,8,32,16]{3,2,1,0} parameter(0)
  %b = bf16[4,8,32,16]{3,2,1,0} parameter(1)
  %all-gather.1 = bf16[4,8,32,16]{3,2,1,0} all-gather(%b), channel_id=1, replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={2}
  ROOT %c.1 = f32[4,8,32,32]{3,2,1,0} convolution(%a, %b), window={size=4x8 stride=3x7 lhs_dilate=4x8}, dim_labels=01bf_01oi->01bf
}

%condition (p: (s32[], bf16[64,128])) -> pred[] {
  %p = (s32[], bf16[64,128]{1,0}) parameter(0)
  %limit = s32[]{:T(128)} constant(6)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%body (p.1: (s32[], bf16[64,128])) -> (s32[], bf16[64,128]) {
  %p.1 = (s32[], /*index=1*/bf16[64,128]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %x = bf16[64,128]{1,0} get-tuple-element(%p.1), index=1
  %near = bf16[4,8,32,16]{3,2,1,0:T(8,128)(2,1)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %f.1 = f32[4,8,32,32]{3,2,1,0} fusion(%near, %near), kind=kOutput, calls=%begin
  %f.2 = (f32[4,8,32,32]{3,2,1,0:S(1)}, bf16[4,8,32,16]{3,2,1,0:S(1)}) fusion(%near, %near), kind=kCustom, calls=%begin
  %f.3 = bf16[16,128]{1,0:S(1)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
  ROOT %t = (s32[], bf16[64,128]{1,0}) tuple(%i.1, %x)
}

ENTRY %main (x.1: bf16[64,128]) -> (s32[], bf16[64,128]) {
  %x.1 = bf16[64,128]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %t.1 = (s32[], bf16[64,128]{1,0}) tuple(%zero, %x.1)
  ROOT %w = (s32[], bf16[64,128]{1,0}) while(%t.1), condition=%condition, body=%body
}
"""  # noqa: E501


def test_text_of_a_tpu():
    """Products as convolutions whose windows have holes, one collective in several fusions, arrays on the chip."""
    cost = program_cost(HLO)
    # [4, 8] products of [32, 16] by [16, 32], in two fusions, six times; and the sums of what is reduced.
    assert cost.flops == 6 * (2 * (4 * 8 * 2 * 32 * 16 * 32) + 64 * 128)
    counts = {c.kind: (c.group, c.total, c.sent, n) for c, n in cost.collectives.items()}
    gathered, reduced = 2 * 4 * 8 * 32 * 16, 2 * 64 * 128
    assert counts == {
        "all-gather": (2, 2 * gathered, gathered, 6),
        "reduce-scatter": (4, reduced, 3 * reduced / 4, 6),
    }
    assert cost.sent == 6 * (gathered + 3 * reduced / 4)
    # To main memory: the first fusion's result; from it: what is reduced; both ways, once: what is gathered.
    assert cost.bytes == 6 * (4 * 4 * 8 * 32 * 32 + reduced + 2 * gathered)
    assert program_cost(HLO.replace("constant(6)", "parameter(1)"), unknown_trips=2).sent == cost.sent / 3


KERNELS = """HloModule step, num_partitions=1

%attend (q: bf16[2,64,128], k: bf16[2,64,128]) -> bf16[1,64,128] {
  %q = bf16[2,64,128]{2,1,0} parameter(0)
  %k = bf16[2,64,128]{2,1,0} parameter(1)
  %scaled = bf16[2,64,128]{2,1,0} negate(%q)
  %y = bf16[2,64,128]{2,1,0} custom-call(%scaled, %k), custom_call_target="tpu_custom_call"
  ROOT %half = bf16[1,64,128]{2,1,0} slice(%y), slice={[0:1], [0:64], [0:128]}
}

%other (q.3: bf16[2,64,128]) -> (bf16[2,64,128], f32[2,64]) {
  %q.3 = bf16[2,64,128]{2,1,0} parameter(0)
  ROOT %y.3 = (bf16[2,64,128]{2,1,0}, f32[2,64]{1,0}) custom-call(%q.3), custom_call_target="tpu_custom_call"
}

ENTRY %main (q.1: bf16[2,64,128], k.1: bf16[2,64,128]) -> bf16[1,64,128] {
  %q.1 = bf16[2,64,128]{2,1,0} parameter(0)
  %k.1 = bf16[2,64,128]{2,1,0} parameter(1)
  %near = bf16[2,64,128]{2,1,0:S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %far = bf16[2,64,128]{2,1,0} custom-call(), custom_call_target="AllocateBuffer"
  %y.1 = (bf16[2,64,128]{2,1,0}, f32[2,64]{1,0:S(1)}) custom-call(%q.1, %near, /*index=2*/%far), custom_call_target="tpu_custom_call", metadata={op_name="splash"}
  %y.2 = (bf16[2,64,128]{2,1,0}, f32[2,64]{1,0}) fusion(%k.1), kind=kCustom, calls=%other
  ROOT %f = bf16[1,64,128]{2,1,0} fusion(%q.1, %k.1), kind=kCustom, calls=%attend
}
"""  # noqa: E501


def test_custom_kernels_move_what_they_read_and_write():
    """By themselves and in fusions, all of it even where a part of the result is used; not what is on the chip, and not
    what other custom calls stand for."""
    cost, array = program_cost(KERNELS), 2 * 2 * 64 * 128
    alone, second, sliced = 3 * array, 2 * array + 4 * 2 * 64, 2 * array + array / 2
    assert cost.kernels == 3 and cost.bytes == alone + second + sliced
    others = program_cost(KERNELS.replace("tpu_custom_call", "AllocateBuffer"))
    assert others.kernels == 0 and others.bytes == second + sliced


GROUPS = {
    "[2,4]<=[8]": 4,
    "{{0,1},{2,3},{4,5},{6,7}}": 2,
    "{}": 8,
    "mesh['axis_0'=2,'axis_1'=4] {'axis_1'}": 4,
    "mesh['axis_0'=1,'axis_1'=2,'axis_2'=4], device_ids=([4,2]T(1,0)) {'axis_1','axis_2'}": 8,
    "mesh['axis_0'=8] {'axis_0':(1)2}": 2,
}


@pytest.mark.parametrize("groups", GROUPS)
def test_groups_of_a_collective(groups):
    text = HLO.replace("replica_groups=[2,4]<=[8]", f"replica_groups={groups}, use_global_device_ids=true")
    (found,) = (c for c in program_cost(text).collectives if c.kind == "reduce-scatter")
    assert found.group == GROUPS[groups]


def test_groups_of_another_form_are_no_guess():
    program = Program(HLO.replace("replica_groups=[2,4]<=[8]", "replica_groups=v9[2,4]"))
    where = "all-reduce-scatter"
    with pytest.raises(ValueError, match="unknown form: v9"):
        program.collective(program.computations[where]["all-reduce.2"], where)


ON_CHIP = """HloModule step, num_partitions=1

%write (stack: bf16[6,64,128], x: bf16[64,128], at: s32[]) -> (bf16[6,64,128], bf16[64,128]) {
  %stack = bf16[6,64,128]{2,1,0} parameter(0)
  %x = bf16[64,128]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %zero = s32[] constant(0)
  %y = bf16[64,128]{1,0} negate(%x)
  %row = bf16[1,64,128]{2,1,0} bitcast(%y)
  %new = bf16[6,64,128]{2,1,0} dynamic-update-slice(%stack, %row, %at, %zero, %zero)
  ROOT %t = (bf16[6,64,128]{2,1,0}, bf16[64,128]{1,0}) tuple(%new, %y)
}

ENTRY %main (stack.1: bf16[6,64,128], x.1: bf16[64,128], at.1: s32[]) -> bf16[6,64,128] {
  %stack.1 = bf16[6,64,128]{2,1,0} parameter(0)
  %x.1 = bf16[64,128]{1,0} parameter(1)
  %at.1 = s32[]{:S(2)} parameter(2)
  %begin = (bf16[64,128]{1,0:S(1)}, bf16[64,128]{1,0}, u32[]{:S(2)}) copy-start(%x.1)
  %near = bf16[64,128]{1,0:S(1)} copy-done(%begin)
  %again = bf16[64,128]{1,0:S(1)} copy(%near), frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="splash"}
  %f = (bf16[6,64,128]{2,1,0}, bf16[64,128]{1,0:S(1)}) fusion(%stack.1, %again, %at.1), kind=kLoop, calls=%write
  ROOT %result = bf16[6,64,128]{2,1,0} get-tuple-element(%f), index=0
}
"""


def test_on_chip_arrays_are_not_in_main_memory():
    """The copy reads an array; the fusion writes one of the stack's six, and its other array stays on the chip."""
    array = 2 * 64 * 128
    assert program_cost(ON_CHIP).bytes == array + array
    everywhere = program_cost(ON_CHIP.replace("S(1)", "S(0)")).bytes  # two copies both ways, x is read, y is written
    assert everywhere == 4 * array + 3 * array
