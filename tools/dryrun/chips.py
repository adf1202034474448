"""The devices that a dry run compiles for: a TPU slice that is named by its topology, or virtual CPU devices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from seq2seq_jax.config.validation import check, nearest
from seq2seq_jax.parallel.chips import CHIPS, Chip

EXAMPLES = "v5e:2x4, v5e:16x16, v4:4x4x4, v5p:4x4x4, v6e:4x4"
INSTALL = "pip install 'jax[tpu]'"


def chip_named(name: str) -> Chip:
    """A chip by its name. Raises ValueError for an unknown one; names the nearest."""
    check(name in CHIPS, f"chip {name!r} is unknown: {nearest(name, CHIPS)}")
    return CHIPS[name]


def tpu_devices(topology: str) -> tuple[Chip, Sequence[Any]]:
    """The chip of a topology ("v5e:16x16") and its devices, which compile and do not run.

    Raises:
      ValueError: for an unknown topology; names some that are known.
      ModuleNotFoundError: without libtpu.
      RuntimeError: if another process uses libtpu.
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
        if "lockfile" in str(error):
            raise RuntimeError(
                "another process uses libtpu, which one process may use at a time; wait for it to end, or set the"
                " environment variable ALLOW_MULTIPLE_LIBTPU_LOAD=1"
            ) from error
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
