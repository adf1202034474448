"""What the text of a compiled program says beyond XLA's analyses: the trip counts of loops, and the collectives."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
# The name of a fusion that is a TPU's reduce-scatter.
SCATTER = "all-reduce-scatter"
KERNEL = 'custom_call_target="tpu_custom_call"'  # a Pallas kernel
SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
LINE = re.compile(r"\s*(?:ROOT )?%?(\S+) = ")
# An operand, with or without its shape in front.
OPERAND = re.compile(r"%?([A-Za-z_][\w.\-]*)(?=\s*(?:,|$))")
HEADER = re.compile(r"(ENTRY )?%?(\S+) (?:\(.*)?\{$", re.MULTILINE)
CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
ALIASED = re.compile(r"\{(\d+)\}: \((\d+), \{\}")
# Attributes that refer to other parts of the text, or are for profilers; those of a kernel fill several lines.
BRACES = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
NOTES = re.compile(rf", (?:metadata|frontend_attributes|control-predecessors)={BRACES}")


class Shape(NamedTuple):
    """An array: its sizes, the bytes of one number, and whether it is in the device's main memory."""

    dims: tuple[int, ...]
    width: float
    main: bool = True

    @property
    def bytes(self) -> float:
        return math.prod(self.dims) * self.width


class Collective(NamedTuple):
    """One exchange between devices.

    Attributes:
      kind: one of `COLLECTIVES`. group: the number of devices that take part.
      inputs: `sizes_of` each array that a device contributes.
      total: bytes of the data of all devices together. sent: bytes that each device must send, each byte once.
    """

    kind: str
    group: int
    inputs: tuple[tuple[int, ...], ...]
    total: float
    sent: float


@dataclass(frozen=True)
class Instruction:
    """A line of the text.

    Attributes:
      shapes: the arrays that result. operands: their names. inner: the text in the parentheses. attributes: the text
        behind them. type: of the result, as it is written. line: all of it, without `NOTES`.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    inner: str
    attributes: str
    type: str
    line: str

    @property
    def kernel(self) -> bool:
        return self.opcode == "custom-call" and KERNEL in self.attributes

    @property
    def collective(self) -> bool:
        return self.opcode.removesuffix("-start") in COLLECTIVES

    @property
    def aliased(self) -> list[tuple[str, str]]:
        """Numbers of results and of operands that are the same buffer."""
        return ALIASED.findall(self.attributes)

    def value(self, name: str) -> str:
        """The value of an attribute `name=value`; empty if there is none."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return found.group(1) if found else ""

    @property
    def calls(self) -> tuple[str, ...]:
        """The computations that it runs, except those that a reduction or a sort applies to single numbers."""
        names = {
            "while": ("body",), "call": ("to_apply",), "fusion": ("calls",), "async-start": ("calls",),
            "conditional": ("branch_computations", "true_computation", "false_computation"),
        }.get(self.opcode, ())  # fmt: skip
        return tuple(found for name in names for found in re.findall(r"[\w.\-]+", self.value(name)))


def sizes_of(dims: Sequence[int]) -> tuple[int, ...]:
    """An array's sizes without the order of its axes and without axes of size 1: what a transpose keeps."""
    return tuple(sorted(size for size in dims if size != 1))


class Program:
    """The text of a compiled program (`jax.stages.Compiled.as_text()`).

    Attributes:
      computations: the instructions by name, for each computation by name. entry: the name of the main computation.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        self._texts: dict[str, str] = {}
        self._devices = max(map(int, re.findall(r"num_partitions=(\d+)", text)), default=1)
        for block in NOTES.sub("", text).split("\n\n"):
            block = block.strip("\n")
            if header := HEADER.match(block):
                name = header.group(2)
                self._texts[name] = block.removeprefix("ENTRY ")
                found = (_instruction(line) for line in block.splitlines()[1:])
                self.computations[name] = {i.name: i for i in found if i is not None}
                self.entry = name if header.group(1) else self.entry

    def inputs(self, i: Instruction, where: str) -> list[Shape]:
        """The arrays that an instruction of the computation `where` reads; of a tuple the first."""
        return [self.computations[where][name].shapes[0] for name in i.operands]

    def parts(self, i: Instruction, where: str) -> Iterator[tuple[str, Instruction]]:
        """The instruction, or those inside a fusion, each with the computation that it belongs to."""
        if i.opcode != "fusion":
            yield where, i
            return
        for name in i.calls:
            for part in self.computations[name].values():
                yield from self.parts(part, name)

    def alone(self, i: Instruction, where: str) -> str:
        """A program that consists of the instruction, its operands as parameters."""
        operands = {name: self.computations[where][name] for name in i.operands}
        parameters = [f"{name} = {o.type} parameter({n})" for n, (name, o) in enumerate(operands.items())]
        needed, waiting = {}, [i.line]
        while waiting:
            for name in CALLED.findall(waiting.pop()):
                needed.pop(name, None)  # so that a computation comes behind all that call it
                needed[name] = self._texts[name]
                waiting.append(needed[name])
        lines = ["HloModule alone", *reversed(needed.values()), "\n".join(["ENTRY main {", *parameters, i.line, "}"])]
        return "\n\n".join(lines)

    def trips(self, loop: Instruction) -> int | None:
        """How often a loop runs; None if that is unknown.

        On a CPU the text says it. On a TPU the loop's condition does: a counter, from 0 in steps of 1 as in jax's
        scans, is less than a constant.
        """
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known.group(1))
        condition = [part for i in self.computations[loop.value("condition").lstrip("%")].values()
                     for _, part in self.parts(i, "")]  # fmt: skip
        work = [i for i in condition if i.opcode not in ("parameter", "get-tuple-element", "bitcast", "tuple", "copy")]
        limits = [int(i.inner) for i in work if i.opcode == "constant" and i.inner.isdecimal()]
        compared = [i.value("direction") for i in work if i.opcode != "constant"]
        return limits[0] if compared == ["LT"] and len(limits) == 1 else None

    def collective(self, i: Instruction, where: str) -> Collective:
        """What the devices exchange in an instruction that is `collective`."""
        kind, group = i.opcode.removesuffix("-start"), self._group(i)
        shapes = [shape for name in i.operands for shape in self.computations[where][name].shapes]
        if kind == "all-reduce" and SCATTER in where:
            kind = "reduce-scatter"
        total = sum(s.bytes for s in shapes) * (group if kind == "all-gather" else 1)
        share = {"all-reduce": 2 * (group - 1) / group, "collective-permute": 1.0}.get(kind, (group - 1) / group)
        return Collective(kind, group, tuple(sizes_of(s.dims) for s in shapes), total, total * share)

    def _group(self, i: Instruction) -> int:
        """How many devices take part together: from [groups,size]<=[...], {{0,1},{2,3}}, or mesh['a'=4,'b'=64] {'a'},
        where a part of an axis is written 'b':(before)size. With {} or nothing, all devices do.
        """
        if i.opcode.startswith("collective-permute"):
            return 2
        groups = i.attributes.partition("replica_groups=")[2]
        if not groups or groups.startswith("{}"):
            return self._devices
        if compact := re.match(r"\[(?:\d+,)*(\d+)\]<=", groups):
            return int(compact[1])
        if listed := re.match(r"\{\{([\d,]+)\}", groups):
            return len(listed[1].split(","))
        if by_axes := re.match(r"mesh\[(.*?)\](?:, device_ids=\([^{]*\))? \{(.*?)\}", groups):
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", by_axes[1]))
            taking_part = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", by_axes[2])
            return math.prod(int(part or sizes[axis]) for axis, part in taking_part)
        raise ValueError(f"replica groups in an unknown form: {groups[:100]}")


def _instruction(line: str) -> Instruction | None:
    """A line of the text, or None if it is no instruction."""
    head = LINE.match(line)
    if head is None:
        return None
    text = re.sub(r"/\*.*?\*/", "", line[head.end() :])
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    kind, after = text[:end], text[end:].lstrip()
    begin = after.index("(")
    close = _closing(after, begin)
    opcode, inner = after[:begin], after[begin + 1 : close - 1]
    return Instruction(
        name=head.group(1),
        opcode=opcode,
        shapes=tuple(_shape(*found) for found in SHAPE.findall(kind)),
        operands=() if opcode in ("parameter", "constant") else tuple(OPERAND.findall(inner)),
        inner=inner,
        attributes=after[close:],
        type=kind,
        line=line,
    )


def _closing(text: str, begin: int) -> int:
    """The position behind the parenthesis that closes the one at `begin`."""
    depth = 0
    for found in re.finditer(r"[()]", text[begin:]):
        depth += 1 if found.group() == "(" else -1
        if depth == 0:
            return begin + found.end()
    raise ValueError(f"a parenthesis stays open in {text[:80]!r}; this version of XLA prints programs in another way")


def _shape(kind: str, dims: str, layout: str) -> Shape:
    bits = re.search(r"\d+", kind)
    width = {"pred": 1, "token": 0, "opaque": 0}.get(kind, int(bits.group()) / 8 if bits else 4)
    sizes = tuple(int(n) for n in re.findall(r"\d+", dims))
    # S(1) and above are other memories: a TPU's on-chip memory, flags.
    return Shape(sizes, width, main=re.search(r"S\([1-9]", layout) is None)
