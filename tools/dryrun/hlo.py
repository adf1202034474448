"""What a compiled program does on one device: FLOPs, bytes and collectives, read from its text.

XLA's own cost_analysis counts the body of a loop once; here it counts as often as it runs. A loop whose number of
turns the text does not tell (a search, which ends when all rows are done) has as many as the caller says.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
# They move nothing: names for what is there, the ends of what was begun before, and custom calls that are no `KERNEL`.
FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "iota", "custom-call", "opt-barrier", "while", "conditional", "call", "async-start", "async-update",
)  # fmt: skip
# A fusion that is a TPU's reduce-scatter; it writes its part only.
SCATTER = "all-reduce-scatter"
# Of a custom kernel (Pallas), which reads its operands and writes its results.
KERNEL = 'custom_call_target="tpu_custom_call"'
SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
LINE = re.compile(r"\s*(ROOT )?%?(\S+) = ")
# With or without its shape in front; what jax lowers has no %.
OPERAND = re.compile(r"%?([A-Za-z_][\w.\-]*)(?=\s*(?:,|$))")
HEADER = re.compile(r"(ENTRY )?%?(\S+) (?:\(.*)?\{$")


class Shape(NamedTuple):
    """One array: its sizes, the bytes of a number, and whether it is in the device's main memory."""

    dims: tuple[int, ...]
    width: float
    main: bool = True

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """In main memory."""
        return self.size * self.width * self.main


class Collective(NamedTuple):
    """What devices exchange.

    Attributes:
      kind: of `COLLECTIVES`. group: how many take part.
      given: `sizes_of` each array that a device gives.
      whole: bytes of all devices' together. sent: bytes that each device must send, if nothing is sent twice.
    """

    kind: str
    group: int
    given: tuple[tuple[int, ...], ...]
    whole: float
    sent: float


@dataclass(frozen=True)
class Cost:
    """Of one device.

    Attributes:
      flops: of matrix products and convolutions. bytes: to and from main memory.
      collectives: how often each. kernels: custom kernels, whose FLOPs are not known.
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


@dataclass(frozen=True)
class Instruction:
    """One line: its results, names of its operands, what stands in the brackets, and what behind them."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    brackets: str
    rest: str
    root: bool

    @property
    def bytes(self) -> float:
        return sum(shape.bytes for shape in self.shapes)

    @property
    def kernel(self) -> bool:
        return self.opcode == "custom-call" and KERNEL in self.rest

    def value(self, name: str) -> str:
        """Of `name=value`; empty if there is none."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.rest)
        return found.group(1) if found else ""

    def numbers(self, name: str) -> tuple[int, ...]:
        return tuple(int(n) for n in re.findall(r"\d+", self.value(name)))

    @cached_property
    def calls(self) -> tuple[str, ...]:
        """The computations that it runs; not those that a reduction or a sort applies to numbers."""
        names = {
            "while": ("body",), "call": ("to_apply",), "fusion": ("calls",), "async-start": ("calls",),
            "conditional": ("branch_computations", "true_computation", "false_computation"),
        }.get(self.opcode, ())  # fmt: skip
        return tuple(found for name in names for found in re.findall(r"[\w.\-]+", self.value(name)))


def instruction(line: str) -> Instruction | None:
    """A line of the text, or None if it is none."""
    head = LINE.match(line)
    if head is None:
        return None
    text = re.sub(r"/\*.*?\*/", "", line[head.end() :])
    end = _closed(text, 0) if text.startswith("(") else text.index(" ")
    kind, after = text[:end], text[end:].lstrip()
    begin = after.index("(")
    close = _closed(after, begin)
    inner = after[begin + 1 : close - 1]
    return Instruction(
        name=head.group(2),
        opcode=after[:begin],
        shapes=tuple(_shape(*found) for found in SHAPE.findall(kind)),
        operands=tuple(OPERAND.findall(inner)),
        brackets=inner,
        rest=after[close:],
        root=head.group(1) is not None,
    )


def sizes_of(dims: Sequence[int]) -> tuple[int, ...]:
    """What stays of an array's sizes when its axes are permuted and those of 1 come and go."""
    return tuple(sorted(size for size in dims if size != 1))


def _closed(text: str, begin: int) -> int:
    """Behind the bracket that closes the one at `begin`."""
    depth = 0
    for found in re.finditer(r"[()]", text[begin:]):
        depth += 1 if found.group() == "(" else -1
        if depth == 0:
            return begin + found.end()
    raise ValueError(f"a bracket stays open in {text[:80]!r}; this XLA writes its programs in another way")


def _shape(kind: str, dims: str, layout: str) -> Shape:
    bits = re.search(r"\d+", kind)
    width = {"pred": 1, "token": 0, "opaque": 0}.get(kind, int(bits.group()) / 8 if bits else 4)
    sizes = tuple(int(n) for n in re.findall(r"\d+", dims))
    # S(1) and above are other memories: a TPU's on-chip one, flags.
    return Shape(sizes, width, main=re.search(r"S\([1-9]", layout) is None)


class Program:
    """The text of a compiled program (`jax.stages.Compiled.as_text()`)."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.devices = max(map(int, re.findall(r"num_partitions=(\d+)", text)), default=1)
        self._costs: dict[tuple[str, int], Cost] = {}
        self._shares: dict[tuple[str, str, float], float] = {}
        self._users: dict[str, dict[str, list[Instruction]]] = {}
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if not line.startswith(" ") and (header := HEADER.match(line)):
                current = self.computations.setdefault(header.group(2), {})
                self.entry = header.group(2) if header.group(1) else getattr(self, "entry", None)
            elif (found := instruction(line)) is not None:
                current[found.name] = found

    def cost(self, *, unknown_turns: int = 1) -> Cost:
        """All of it; loops whose turns are not known have `unknown_turns`."""
        return self._cost(self.entry, unknown_turns)

    def _cost(self, name: str, unknown_turns: int) -> Cost:
        if (name, unknown_turns) not in self._costs:
            cost, exchanged, moved = Cost(), {}, {}
            for i in self.computations[name].values():
                cost = cost.plus(self._called(i, unknown_turns))
                cost = cost.plus(Cost(bytes=self._moved(i, name)))
                for where, part in self._parts(i, name):
                    cost = cost.plus(Cost(flops=self._flops(part, where), kernels=part.kernel))
                    if (collective := self._collective(part, where)) is not None:
                        # One that runs beside other work stands in several fusions, under one channel.
                        channel = part.value("channel_id") or part.name
                        exchanged[channel] = collective
                        if i.opcode == "fusion":
                            read = sum(self._operand_bytes(n, where) for n in part.operands)
                            moved[channel] = read + (0.0 if SCATTER in where else part.bytes)
            cost = cost.plus(Cost(bytes=sum(moved.values()), collectives=Counter(exchanged.values())))
            self._costs[name, unknown_turns] = cost
        return self._costs[name, unknown_turns]

    def _called(self, i: Instruction, unknown_turns: int) -> Cost:
        """Of what it runs, fusions aside; of branches the one that moves most."""
        if i.opcode == "fusion" or not i.calls:
            return Cost()
        costs = [self._cost(name, unknown_turns) for name in i.calls]
        turns = self._turns(i) if i.opcode == "while" else 1
        return Cost().plus(max(costs, key=lambda c: c.bytes), unknown_turns if turns is None else turns)

    def _parts(self, i: Instruction, where: str) -> Iterator[tuple[str, Instruction]]:
        """The instruction, or those inside a fusion, each with the computation that it stands in."""
        if i.opcode != "fusion":
            yield where, i
            return
        for name in i.calls:
            for part in self.computations[name].values():
                yield from self._parts(part, name)

    def _turns(self, loop: Instruction) -> int | None:
        """How often a loop runs; None if that is not known.

        CPU's text says it; of a TPU's, the condition is read: a counter, from 0 in steps of 1 as jax's scans count, is
        less than a constant.
        """
        said = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
        if said:
            return int(said.group(1))
        condition = [part for i in self.computations[loop.value("condition").lstrip("%")].values()
                     for _, part in self._parts(i, "")]  # fmt: skip
        work = [i for i in condition if i.opcode not in ("parameter", "get-tuple-element", "bitcast", "tuple", "copy")]
        limits = [int(i.brackets) for i in work if i.opcode == "constant" and i.brackets.isdecimal()]
        compared = [i.value("direction") for i in work if i.opcode != "constant"]
        return limits[0] if compared == ["LT"] and len(limits) == 1 else None

    def _operand(self, i: Instruction, which: int, where: str) -> Shape:
        return self.computations[where][i.operands[which]].shapes[0]

    def _flops(self, i: Instruction, where: str) -> float:
        """Multiplications and additions of a product, two for each pair of numbers that meet."""
        if i.opcode == "dot":
            left = self._operand(i, 0, where)
            return 2.0 * i.shapes[0].size * math.prod(left.dims[d] for d in i.numbers("lhs_contracting_dims"))
        if i.opcode == "convolution":
            return _convolution(i, self._operand(i, 0, where).dims, self._operand(i, 1, where).dims)
        return 0.0

    def _collective(self, i: Instruction, where: str) -> Collective | None:
        if not _collects(i):
            return None
        kind = i.opcode.removesuffix("-start")
        shapes = [shape for name in i.operands for shape in self.computations[where][name].shapes]
        given = sum(s.size * s.width for s in shapes)
        group = self._group(i)
        if kind == "all-reduce" and SCATTER in where:
            kind = "reduce-scatter"
        whole = given * group if kind == "all-gather" else given
        share = {"all-reduce": 2 * (group - 1) / group, "collective-permute": 1.0}.get(kind, (group - 1) / group)
        return Collective(kind, group, tuple(map(sizes_of, (s.dims for s in shapes))), whole, whole * share)

    def _group(self, i: Instruction) -> int:
        """How many devices take part together: of [groups,size]<=[...], {{0,1},{2,3}}, or mesh['a'=4,'b'=64] {'a'}, in
        which a part of an axis is 'b':(before)size. Of {} or nothing, all do.
        """
        if i.opcode.startswith("collective-permute"):
            return 2
        groups = i.rest.partition("replica_groups=")[2]
        if not groups or groups.startswith("{}"):
            return self.devices
        if compact := re.match(r"\[(?:\d+,)*(\d+)\]<=", groups):
            return int(compact[1])
        if listed := re.match(r"\{\{([\d,]+)\}", groups):
            return len(listed[1].split(","))
        if by_axes := re.match(r"mesh\[(.*?)\](?:, device_ids=\([^{]*\))? \{(.*?)\}", groups):
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", by_axes[1]))
            taking_part = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", by_axes[2])
            return math.prod(int(part or sizes[axis]) for axis, part in taking_part)
        raise ValueError(f"replica groups of a form that is not known: {groups[:100]}")

    def _moved(self, i: Instruction, where: str) -> float:
        """Bytes that it reads from and writes to main memory; of an array that it slices, the slice only."""
        if (i.opcode in FREE and not i.kernel) or i.opcode.endswith("-done"):
            return 0.0
        if i.opcode == "fusion":
            parameters = self._parameters(i)
            read = [self._operand_bytes(name, where) * self._share(parameters[n], i.calls[0])
                    for n, name in enumerate(i.operands)]  # fmt: skip
            return sum(read) + min(i.bytes, self._written(i.calls[0]))
        if i.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * i.bytes
        if i.opcode in ("dynamic-update-slice", "scatter"):
            return 2 * self._operand_bytes(i.operands[-1 if i.opcode == "scatter" else 1], where)
        if i.opcode in ("copy-start", "slice-start"):  # from one memory to another
            target = i.shapes[0 if i.opcode == "copy-start" else len(i.operands)]
            read = target.size * target.width if self._operand_bytes(i.operands[0], where) else 0.0
            return target.bytes + read
        if i.opcode.endswith("-start"):  # of a collective: what is given stands among the results
            return i.bytes
        return i.bytes + sum(self._operand_bytes(name, where) for name in i.operands)

    def _operand_bytes(self, name: str, where: str) -> float:
        return self.computations[where][name].bytes

    def _parameters(self, fusion: Instruction) -> dict[int, Instruction]:
        inside = self.computations[fusion.calls[0]]
        return {int(p.brackets): p for p in inside.values() if p.opcode == "parameter"}

    def _share(self, i: Instruction, where: str, of_root: float = 1.0) -> float:
        """The share of i's numbers that the fusion `where` uses: of slices what they take, of updates, of what it hands
        on and of what is counted `_elsewhere` nothing. A number's own way to the result is lazy: what is sliced later
        is needed in part only.

        Args:
          of_root: the share of the fusion's result that is used; it may stand in another one.
        """
        share = 0.0
        for use in self._uses(where)[i.name]:
            first, same = use.operands[0] == i.name, use.shapes[0].size == i.shapes[0].size
            if use.opcode == "tuple":
                share += 0.0 if i.opcode == "parameter" else of_root
            elif use.kernel:
                share += 1.0
            elif use.opcode == "fusion":
                rest, parameters = self._share_of_result(use, where, of_root), self._parameters(use)
                given = [n for n, name in enumerate(use.operands) if name == i.name]
                share += sum(self._share(parameters[n], use.calls[0], rest) for n in given)
            elif first and use.opcode in ("dynamic-slice", "slice", "gather"):
                share += use.shapes[0].size / i.shapes[0].size
            elif not (_elsewhere(use) or (first and use.opcode == "dynamic-update-slice")):
                share += self._share_of_result(use, where, of_root) if same else 1.0
        return min(share, 1.0)

    def _share_of_result(self, i: Instruction, where: str, of_root: float) -> float:
        key = (i.name, where, of_root)
        if key not in self._shares:
            self._shares[key] = of_root if i.root else self._share(i, where, of_root)
        return self._shares[key]

    def _uses(self, where: str) -> Mapping[str, Sequence[Instruction]]:
        if where not in self._users:
            self._users[where] = defaultdict(list)
            for i in self.computations[where].values():
                for name in dict.fromkeys(i.operands):
                    self._users[where][name].append(i)
        return self._users[where]

    def _written(self, where: str) -> float:
        """Bytes that a fusion writes: of updates in place, the updates; of what it hands on, nothing."""
        inside, total = self.computations[where], 0.0
        waiting = [i for i in inside.values() if i.root]
        while waiting:
            i = waiting.pop()
            if i.opcode in ("tuple", "bitcast"):
                waiting += [inside[name] for name in i.operands]
            elif i.opcode == "fusion":
                total += self._written(i.calls[0])
            elif i.opcode != "parameter" and (SCATTER in where or not _elsewhere(i)):
                shape = inside[i.operands[1]].shapes[0] if i.opcode == "dynamic-update-slice" else None
                total += sum(s.size * s.width for s in i.shapes) if shape is None else shape.size * shape.width
        return total


def _collects(i: Instruction) -> bool:
    return i.opcode.removesuffix("-start") in COLLECTIVES


def _elsewhere(i: Instruction) -> bool:
    """What it moves is counted elsewhere, if it stands in a fusion; custom calls there that are no kernels are a
    collective's two ends."""
    return (i.opcode == "custom-call" and not i.kernel) or _collects(i)


def _convolution(i: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """FLOPs as XLA's HloCostAnalysis counts them: what meets padding or the holes of a dilation is none. (A TPU's
    products are convolutions, and their batch dimensions windows with such holes.)"""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)
    lhs, rhs, out = labels.groups()
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", i.value("window")))
    spatial = sorted(c for c in lhs if c.isdigit())

    def of(name: str, default: str) -> list[str]:
        return window[name].split("x") if name in window else [default] * len(spatial)

    pads, strides = of("pad", "0_0"), of("stride", "1")
    holes, kernel_holes = of("lhs_dilate", "1"), of("rhs_dilate", "1")
    pairs = 1
    for n, label in enumerate(spatial):
        base, size = left[lhs.index(label)], right[rhs.index(label)]
        low, stride, hole, step = int(pads[n].split("_")[0]), int(strides[n]), int(holes[n]), int(kernel_holes[n])
        places = (o * stride + k * step - low for o in range(i.shapes[0].dims[out.index(label)]) for k in range(size))
        pairs *= sum(0 <= place <= (base - 1) * hole and place % hole == 0 for place in places)
    features = right[rhs.index("i")] * right[rhs.index("o")]
    batch = left[lhs.index("b")] // int(i.value("batch_group_count") or 1)
    return 2.0 * pairs * features * batch
