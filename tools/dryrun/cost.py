"""The cost of a compiled program on one device, by XLA's own analysis.

`compiled.cost_analysis()` counts the body of a loop once, and on-chip memory as if it were main memory. So here XLA
analyzes each instruction by itself, only operands and results in main memory are counted, and the body of a loop is
counted as often as it runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax
from jax._src.lib import _jax, hlo  # what `cost_analysis` calls; jax has no public name for a part of a program

from tools.dryrun.hlo import SCATTER, Collective, Instruction, Program, Shape

# They move nothing by themselves. A custom call that is no kernel stands for a buffer or for an end of a collective.
FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "iota", "custom-call", "opt-barrier", "async-update",
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """The cost of a program, or of a part of it, on one device.

    Attributes:
      flops: as XLA counts them, element-wise ones too; those of Pallas kernels are unknown, and left out.
      bytes: to and from main memory.
      collectives: how often each is run. kernels: how often Pallas kernels are run.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: Mapping[Collective, float] = field(default_factory=Counter)
    kernels: float = 0.0

    def plus(self, other: Cost, times: float = 1) -> Cost:
        """The sum of this and `times` the other; `times` may be -1."""
        collectives = Counter(self.collectives)
        for collective, count in other.collectives.items():
            collectives[collective] += times * count
        return Cost(
            self.flops + times * other.flops,
            self.bytes + times * other.bytes,
            Counter({c: n for c, n in collectives.items() if n}),
            self.kernels + times * other.kernels,
        )

    @property
    def sent(self) -> float:
        """Bytes that a device must send."""
        return sum(count * collective.sent for collective, count in self.collectives.items())


def program_cost(text: str, *, unknown_trips: int = 1) -> Cost:
    """The cost of a program.

    Args:
      text: of the compiled program (`jax.stages.Compiled.as_text()`).
      unknown_trips: how often a loop counts whose trip count the text does not say, such as a search that ends when all
        rows are done.
    """
    program = Program(text)
    return _cost(program, program.entry, unknown_trips, {})


def _cost(program: Program, name: str, unknown_trips: int, known: dict[str, Cost]) -> Cost:
    """The cost of one run of a computation; `known` holds those of others."""
    if name in known:
        return known[name]
    cost, collectives = Cost(), {}
    for i in program.computations[name].values():
        if i.calls and i.opcode != "fusion":  # of the branches of a conditional, the one that moves most
            called = max((_cost(program, each, unknown_trips, known) for each in i.calls), key=lambda cost: cost.bytes)
            trips = program.trips(i) if i.opcode == "while" else 1
            cost = cost.plus(called, unknown_trips if trips is None else trips)
            continue
        parts = list(program.parts(i, name))
        overlapped = i.opcode == "fusion" and any(p.collective and SCATTER not in where for where, p in parts)
        cost = cost.plus(_instruction_cost(program, i, name, overlapped))
        cost = cost.plus(Cost(kernels=sum(part.kernel for _, part in parts)))
        for where, part in parts:
            if part.collective:
                # One that overlaps other work is in several fusions, under one channel; it is counted once.
                channel = part.value("channel_id") or part.name
                if overlapped and channel not in collectives:
                    cost = cost.plus(Cost(bytes=_in_main((*part.shapes, *program.inputs(part, where)))))
                collectives[channel] = program.collective(part, where)
    known[name] = cost.plus(Cost(collectives=Counter(collectives.values())))
    return known[name]


def _instruction_cost(program: Program, i: Instruction, where: str, overlapped: bool) -> Cost:
    """FLOPs and bytes of an instruction.

    Args:
      overlapped: whether it is a fusion with a part of a collective that overlaps other work. The collective's buffers
        are then both operands and results, and the fusion itself moves none of them.
    """
    inputs = program.inputs(i, where)
    if i.kernel:
        return Cost(bytes=_in_main((*i.shapes, *inputs)))
    if i.opcode in FREE or i.opcode.endswith("-done"):
        return Cost()
    if i.opcode == "slice-start":  # its results are the operand, the slice and a flag
        cut = i.shapes[1]
        return Cost(bytes=cut.bytes * (cut.main + inputs[0].main))
    if i.opcode.endswith("-start"):  # the operands are among its results
        return Cost(bytes=_in_main(i.shapes))
    module = hlo.hlo_module_from_text(program.alone(i, where))
    found = _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)
    flops = max(found.get("flops", 0.0), 0.0)
    if overlapped and i.value("kind") == "kCustom":  # the begin or the end of the collective
        return Cost(flops)
    if len(i.shapes) > 1 and i.opcode != "fusion":  # XLA says only what all results have together
        return Cost(flops, _in_main((*i.shapes, *inputs)))
    arrays = {f"{n}{{}}": shape for n, shape in enumerate(inputs)}
    arrays |= {"out{}": i.shapes[0]} if len(i.shapes) == 1 else {f"out{{{n}}}": s for n, s in enumerate(i.shapes)}
    for result, operand in i.aliased if overlapped else ():
        arrays.pop(f"out{{{result}}}", None)
        arrays.pop(f"{operand}{{}}", None)
    return Cost(flops, sum(found.get(f"bytes accessed{key}", 0.0) for key, shape in arrays.items() if shape.main))


def _in_main(shapes: Sequence[Shape]) -> float:
    """Bytes in main memory."""
    return sum(shape.bytes for shape in shapes if shape.main)
