"""What the dry run reads in a compiled program's text: FLOPs, bytes, exchanges, custom kernels."""

import jax
import jax.numpy as jnp
import pytest

from tools.dryrun.hlo import Program


def compiled(function, *shapes):
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()


def test_loops_count_as_often_as_they_run():
    def layers(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    def search(x, kernel):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 5, lambda x: jnp.tanh(x @ kernel), x)

    program = Program(compiled(layers, (8, 32), (7, 32, 32)).as_text())
    assert program.cost().flops == 7 * 2 * 8 * 32 * 32
    # Each turn reads its own kernel of the seven, not all of them.
    assert 4 * 7 * 32 * 32 < program.cost().bytes < 5 * 4 * 7 * 32 * 32
    program = Program(compiled(search, (8, 32), (32, 32)).as_text())
    assert [program.cost(unknown_turns=n).flops for n in (0, 1, 3)] == [0, 2 * 8 * 32 * 32, 3 * 2 * 8 * 32 * 32]


def test_bytes_without_loops_are_xlas():
    def mlp(x, up, down):
        return jax.nn.relu(x @ up) @ down + x[:, ::-1]

    program = compiled(mlp, (16, 32), (32, 64), (64, 32))
    assert Program(program.as_text()).cost().bytes == pytest.approx(program.cost_analysis()["bytes accessed"], rel=0.02)


HLO = """HloModule step, num_partitions=8

%all-reduce-scatter (input: bf16[64,128]) -> bf16[16,128] {
  %input = bf16[64,128]{1,0} parameter(0)
  ROOT %all-reduce.2 = bf16[64,128]{1,0} all-reduce(%input), channel_id=3, replica_groups=[2,4]<=[8], to_apply=%add
}

%begin (a: bf16[4,8,32,16], b: bf16[4,8,32,16]) -> f32[4,8,32,32] {
  %a = bf16[4,8,32,16]{3,2,1,0} parameter(0)
  %b = bf16[4,8,32,16]{3,2,1,0} parameter(1)
  %all-gather.1 = bf16[4,8,32,16]{3,2,1,0} all-gather(%b), channel_id=1, replica_groups={{0,1},{2,3},{4,5},{6,7}}
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
    program = Program(HLO)
    cost = program.cost()
    # [4, 8] products of [32, 16] by [16, 32], in two fusions, six times.
    assert cost.flops == 6 * 2 * (4 * 8 * 2 * 32 * 16 * 32)
    counts = {c.kind: (c.group, c.whole, c.sent, n) for c, n in cost.collectives.items()}
    gathered, reduced = 2 * 4 * 8 * 32 * 16, 2 * 64 * 128
    assert counts == {
        "all-gather": (2, 2 * gathered, gathered, 6),
        "reduce-scatter": (4, reduced, 3 * reduced / 4, 6),
    }
    assert cost.sent == 6 * (gathered + 3 * reduced / 4)
    # To main memory: the first fusion's result; from it: what is reduced; both ways, once: what is gathered.
    assert cost.bytes == 6 * (4 * 4 * 8 * 32 * 32 + reduced + 2 * gathered)
    assert Program(HLO.replace("constant(6)", "parameter(1)")).cost(unknown_turns=2).sent == cost.sent / 3


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
    cost, whole = Program(KERNELS).cost(), 2 * 2 * 64 * 128
    alone, second, sliced = 3 * whole, 2 * whole + 4 * 2 * 64, 2 * whole + whole / 2
    assert cost.kernels == 3 and cost.bytes == alone + second + sliced
    free = Program(KERNELS.replace("tpu_custom_call", "AllocateBuffer")).cost()
    assert free.kernels == 0 and free.bytes == whole / 2


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
    (found,) = (c for c in Program(text).cost().collectives if c.kind == "reduce-scatter")
    assert found.group == GROUPS[groups]


def test_groups_of_another_form_are_no_guess():
    with pytest.raises(ValueError, match="not known: v9"):
        Program(HLO.replace("replica_groups=[2,4]<=[8]", "replica_groups=v9[2,4]")).cost()


NESTED = """HloModule step, num_partitions=1

%signs (s: f32[6,64,128]) -> f32[6,64,128] {
  %s = f32[6,64,128]{2,1,0} parameter(0)
  ROOT %n = f32[6,64,128]{2,1,0} negate(%s)
}

%layer (stack: f32[6,64,128], at: s32[], x: f32[64,128]) -> (f32[64,128], f32[64,128]) {
  %stack = f32[6,64,128]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %x = f32[64,128]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %negative = f32[6,64,128]{2,1,0} fusion(%stack), kind=kLoop, calls=%signs
  %one = f32[1,64,128]{2,1,0} dynamic-slice(%negative, %at, %zero, %zero), dynamic_slice_sizes={1,64,128}
  %flat = f32[64,128]{1,0} bitcast(%one)
  %sum = f32[64,128]{1,0} add(%flat, %x)
  ROOT %t = (f32[64,128]{1,0}, f32[64,128]{1,0}) tuple(%sum, %x)
}

%beside (stack.1: f32[6,64,128], at.1: s32[], x.1: f32[64,128]) -> (f32[64,128], f32[64,128]) {
  %stack.1 = f32[6,64,128]{2,1,0} parameter(0)
  %at.1 = s32[] parameter(1)
  %x.1 = f32[64,128]{1,0} parameter(2)
  ROOT %f = (f32[64,128]{1,0}, f32[64,128]{1,0}) fusion(%stack.1, %at.1, %x.1), kind=kLoop, calls=%layer
}

ENTRY %main (stack.2: f32[6,64,128], at.2: s32[], x.2: f32[64,128]) -> (f32[64,128], f32[64,128]) {
  %stack.2 = f32[6,64,128]{2,1,0} parameter(0)
  %at.2 = s32[] parameter(1)
  %x.2 = f32[64,128]{1,0} parameter(2)
  ROOT %f.1 = (f32[64,128]{1,0}, f32[64,128]{1,0}) fusion(%stack.2, %at.2, %x.2), kind=kCustom, calls=%beside
}
"""


def test_bytes_of_fusions_in_fusions():
    """One slice of the stack is read, though what cuts it stands deep; what is handed on is not written."""
    layer = 4 * 64 * 128
    assert Program(NESTED).cost().bytes == pytest.approx(3 * layer, abs=8)
