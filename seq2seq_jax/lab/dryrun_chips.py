"""Chips, and devices that are not there: a TPU slice by its topology's name, or virtual CPU devices.

Figures a chip, from Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" (cloud.google.com/tpu/docs/v4 and
so on): HBM capacity, peak bfloat16 FLOP/s, HBM bandwidth, and inter-chip interconnect. Of the last the pages give all
links of a chip together, 2400, 1600, 4800 and 3200 Gbit/s; that is what a chip can send if all its links work at once,
in one direction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from seq2seq_jax.config.validation import check, nearest


class Chip(NamedTuple):
    """memory: bytes. flops: bfloat16 a second. bandwidth: bytes of memory a second. network: bytes sent a second.
    axes: of its torus. most: chips of a slice. example: a topology. options: of get_topology_desc."""

    name: str
    memory: int
    flops: float
    bandwidth: float
    network: float
    axes: int
    most: int
    example: str
    options: dict[str, Any] = {}  # noqa: RUF012


GIB = 2**30
CHIPS = {
    chip.name: chip
    for chip in (
        # Its two cores work as one, as jobs on v4 run.
        Chip("v4", 32 * GIB, 275e12, 1228e9, 300e9, 3, 4096, "v4:4x4x4", {"chip_config_name": "megacore"}),
        Chip("v5e", 16 * GIB, 197e12, 819e9, 200e9, 2, 256, "v5e:16x16"),
        Chip("v5p", 95 * GIB, 459e12, 2765e9, 600e9, 3, 6144, "v5p:4x4x4"),
        Chip("v6e", 32 * GIB, 918e12, 1640e9, 400e9, 2, 256, "v6e:16x16"),
    )
}
EXAMPLES = "v5e:2x4, v5e:16x16, v4:4x4x4, v5p:4x4x4, v6e:4x4"
INSTALL = "pip install 'jax[tpu]'"


def chip_named(name: str) -> Chip:
    """Raises ValueError for one that the table lacks; names the nearest."""
    check(name in CHIPS, f"chip {name!r} is unknown: {nearest(name, CHIPS)}")
    return CHIPS[name]


def tpu_devices(topology: str) -> tuple[Chip, Sequence[Any]]:
    """The chip of a topology ("v5e:16x16") and its devices, which compile and do not run.

    Raises:
      ValueError: for a name that is none; names some that are.
      ModuleNotFoundError: without libtpu.
    """
    name, colon, shape = topology.partition(":")
    read = bool(colon) and re.fullmatch(r"\d+(x\d+)*", shape) is not None
    check(read, f"topology {topology!r} is unreadable; write it as CHIP:AxB or CHIP:AxBxC, such as {EXAMPLES}")
    check(name in CHIPS, f"topology {topology!r}: chip {nearest(name, CHIPS)}; such as {EXAMPLES}")
    chip, sizes = CHIPS[name], [int(n) for n in shape.split("x")]
    count = 1
    for size in sizes:
        count *= size
    check(
        len(sizes) == chip.axes and 0 < count <= chip.most,
        f"topology {topology!r}: slices of {name} have {chip.axes} axes and at most {chip.most} chips; legal are"
        f" {EXAMPLES}",
    )
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **chip.options)
    except RuntimeError as error:
        if "not installed" in str(error) or "libtpu" in str(error):
            raise ModuleNotFoundError(f"TPU topologies need libtpu; run: {INSTALL}") from error
        raise ValueError(f"topology {topology!r}: {error}; legal are {EXAMPLES}") from error
    return chip, found.devices


def cpu_devices(count: int) -> Sequence[Any]:
    """Virtual CPU devices.

    Raises:
      ValueError: if jax was started with fewer.
    """
    found = jax.devices("cpu")
    check(
        0 < count <= len(found),
        f"devices is {count}, and jax has {len(found)}; start with"
        f" XLA_FLAGS=--xla_force_host_platform_device_count={count}",
    )
    return found[:count]
