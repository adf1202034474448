"""What chips can do.

TPUs: Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" (cloud.google.com/tpu/docs/v4 and so on): HBM
capacity, peak bfloat16 FLOP/s, HBM bandwidth, and inter-chip interconnect. Of the last the pages give all links of a
chip together, 2400, 1600, 4800 and 3200 Gbit/s; that is what a chip can send if all its links work at once, in one
direction. GPUs: NVIDIA's data sheets, dense products of 16-bit numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """A TPU chip.

    Attributes:
      memory: bytes. flops: bfloat16 a second. bandwidth: bytes of memory a second. network: bytes sent a second.
      axes: of its torus. most: chips of a slice. example: a topology. options: of get_topology_desc.
      kinds: what jax calls its devices.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    network: float
    axes: int
    most: int
    example: str
    kinds: tuple[str, ...]
    options: dict[str, Any] = {}  # noqa: RUF012


CHIPS = {
    chip.name: chip
    for chip in (
        # Its two cores work as one, as jobs on v4 run.
        Chip("v4", 32 * GIB, 275e12, 1228e9, 300e9, 3, 4096, "v4:4x4x4", ("TPU v4",), {"chip_config_name": "megacore"}),
        Chip("v5e", 16 * GIB, 197e12, 819e9, 200e9, 2, 256, "v5e:16x16", ("TPU v5 lite", "TPU v5e")),
        Chip("v5p", 95 * GIB, 459e12, 2765e9, 600e9, 3, 6144, "v5p:4x4x4", ("TPU v5", "TPU v5p")),
        Chip("v6e", 32 * GIB, 918e12, 1640e9, 400e9, 2, 256, "v6e:16x16", ("TPU v6 lite", "TPU v6e")),
    )
}
# By what the device's name holds.
GPUS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "V100": 125e12, "L4": 121e12, "T4": 65e12}


def peak_flops(device_kind: str) -> float | None:
    """16-bit FLOP/s of one device by jax's name of its kind; None if it is not known."""
    for chip in CHIPS.values():
        if device_kind in chip.kinds:
            return chip.flops
    words = device_kind.replace("-", " ").split()
    return next((flops for name, flops in GPUS.items() if name in words), None)
