"""The search for a mesh: lists all layouts of the devices, orders them by an estimate, and compiles the best few.

`replica` and `data` split the same arrays, so a layout is their product with `fsdp` and `tensor`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from seq2seq_jax.config import TrainConfig
from seq2seq_jax.data.plan import Bucket
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.parallel.mesh import make_mesh
from seq2seq_jax.training.flops import step_flops
from seq2seq_jax.weights.loading import abstract_params
from tools.dryrun.chips import Chip
from tools.dryrun.compile import (
    Bounds,
    TrainReport,
    abstract_model,
    batch_shape,
    bytes_held,
    check_config,
    dry_train,
)
from tools.log import log

# Copies of the parameters that a step holds beside them: AdamW's two moments and the gradients.
STATE = 3


class Layout(NamedTuple):
    """The sizes of a mesh. data: replica x data."""

    data: int
    fsdp: int
    tensor: int

    def __str__(self) -> str:
        return f"replica x data {self.data}, fsdp {self.fsdp}, tensor {self.tensor}"


class Candidate(NamedTuple):
    """A layout with what is known of its training step.

    Attributes:
      estimate: bounds from shapes alone. state: bytes a chip of parameters, optimizer state and gradients.
      report: None if the step was not compiled.
    """

    layout: Layout
    estimate: Bounds
    state: float
    report: TrainReport | None = None

    def bound(self, chip: Chip) -> Bounds:
        """Bounds of the compiled step if there is one, else the estimate."""
        compiled = self.report is not None and self.report.cost is not None
        return self.report.bounds(chip, math.prod(self.layout)) if compiled else self.estimate

    def fits(self, chip: Chip) -> bool:
        if self.report is None:
            return self.state <= chip.memory
        return self.report.memory is not None and self.report.memory.peak <= chip.memory


def search(
    config: TrainConfig,
    sides: tuple[Mapping[str, Any], Mapping[str, Any]],
    devices: Sequence[Any],
    chip: Chip,
    compiled: int,
) -> list[Candidate]:
    """All legal layouts of `devices`, best first. The best `compiled` of them by estimate are compiled. Ignores
    config.mesh and logs the progress.

    Raises:
      ValueError: if no layout is legal, or for a config that cannot be compiled for these devices.
    """
    check_config(config, devices)

    def model_for(mesh: Mesh) -> EncoderDecoder:
        return abstract_model(config, *sides, mesh, jnp.dtype(config.dtype))

    found = legal(config, model_for, devices, chip)
    log(f"{len(found)} legal layouts of {len(devices)} devices; compiling {min(compiled, len(found))} training steps")
    log(f"computed in {config.dtype}, over float32 parameters")
    for number, candidate in enumerate(found[:compiled]):
        begin, mesh = time.monotonic(), make_mesh(**candidate.layout._asdict(), devices=devices)
        found[number] = done = candidate._replace(report=dry_train(config, model_for(mesh), mesh))
        how = f"{1e3 * done.bound(chip).greatest:.2f} ms" if done.fits(chip) else "does not fit"
        log(f"{number + 1}: {done.layout}: {how} (compiled in {time.monotonic() - begin:.0f} s)")
    return ranked(found, chip)


def layouts(count: int) -> Iterator[Layout]:
    """All layouts of `count` devices."""
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    return (Layout(count // (f * t), f, t) for f in divisors for t in divisors if (count // f) % t == 0)


def legal(
    config: TrainConfig, model_for: Callable[[Mesh], EncoderDecoder], devices: Sequence[Any], chip: Chip
) -> list[Candidate]:
    """The layouts that divide heads, vocabularies, widths and batch, best estimate first.

    Raises:
      ValueError: if there is none; says why the last layout was refused.
    """
    found, why = [], None
    for layout in layouts(len(devices)):
        mesh = make_mesh(**layout._asdict(), devices=devices)
        try:
            bucket, model = batch_shape(config, mesh), model_for(mesh)
            held = bytes_held(abstract_params(model, mesh, jnp.float32))
        except ValueError as error:
            why = error
            continue
        found.append(Candidate(layout, estimate(model, bucket, layout, held, chip), (1 + STATE) * held))
    if not found:
        raise ValueError(f"no mesh of {len(devices)} devices divides this pair and batch; the last: {why}")
    return sorted(found, key=lambda c: (not c.fits(chip), c.estimate.greatest, c.layout.tensor, c.layout.fsdp))


def estimate(model: EncoderDecoder, bucket: Bucket, layout: Layout, held: int, chip: Chip) -> Bounds:
    """Bounds on a training step without compiling it.

    Compute: the model's FLOPs, split evenly. Memory: the state is read and written once, and the gathered weights are
    read in each pass. Network: each chip sends its weights for both passes and its gradients once (fsdp), and has its
    part in the sums of gradients (data) and of each block's states in both passes (tensor).

    Args:
      held: bytes a chip of float32 parameters.
    """
    width, split = jnp.dtype(model.dtype).itemsize, layout.data * layout.fsdp
    flops = step_flops(model, None, bucket.rows, bucket.source_length, bucket.target_length).done
    gathered = held * layout.fsdp * width / 4
    share = lambda n: (n - 1) / n
    sent = 2 * gathered * share(layout.fsdp) + held * layout.fsdp * share(layout.fsdp)
    sent += 2 * held * share(layout.data)
    for side, length, blocks in ((model.config.encoder, bucket.source_length, 2),
                                 (model.config.decoder, bucket.target_length, 3)):  # fmt: skip
        states = bucket.rows / split * length * side.hidden_size * width
        sent += 2 * blocks * side.num_layers * states * 2 * share(layout.tensor)
    moved = 2 * STATE * held + 3 * gathered
    compute = flops / (split * layout.tensor) / chip.flops
    return Bounds(compute, moved / chip.bandwidth, sent / chip.network)


def ranked(candidates: Sequence[Candidate], chip: Chip) -> list[Candidate]:
    """Compiled ones first, those that fit before those that do not, best bound first."""
    return sorted(candidates, key=lambda c: (c.report is None, not c.fits(chip), c.bound(chip).greatest))


def search_json(candidates: Sequence[Candidate], chip: Chip) -> list[dict[str, Any]]:
    """Each layout with its bounds in seconds, and whether it was compiled and fits, as --output writes them."""
    rows = []
    for c in candidates:
        memory = c.report and c.report.memory
        peak = memory.peak if memory else c.report and c.report.needed
        seconds = {**c.bound(chip)._asdict(), "greatest": c.bound(chip).greatest}
        row = {"compiled": c.report is not None, "fits": c.fits(chip), "seconds": seconds, "peak_bytes": peak}
        rows.append({**c.layout._asdict(), **row, "state_bytes": c.state})
    return rows


def search_table(candidates: Sequence[Candidate], chip: Chip) -> str:
    """A line for each layout: bounds in ms, MFU bound, GiB a chip."""
    lines = ["replica x data  fsdp  tensor  compute  memory  network  bound ms   MFU %  GiB a chip"]
    for c in candidates:
        times, compiled = c.bound(chip), c.report is not None
        mfu, size = "", f"{c.state / 2**30:.2f} of state"
        if compiled and c.report.memory is not None:
            chips = math.prod(c.layout)
            mfu = f"{100 * c.report.flops.useful / (times.greatest * chip.flops * chips):.1f}"
            size = f"{c.report.memory.peak / 2**30:.2f}"
        elif compiled:
            size = "–" if c.report.needed is None else f"{c.report.needed / 2**30:.2f}"
        numbers = "  ".join(f"{1e3 * t:7.2f}" for t in times)
        line = f"{c.layout.data:14}  {c.layout.fsdp:4}  {c.layout.tensor:6}  {numbers}  {1e3 * times.greatest:8.2f}"
        marks = ("" if compiled else "  (estimate)") + ("" if c.fits(chip) else "  does NOT fit")
        lines.append(f"{line}  {mfu:>6}  {size}{marks}")
    return "\n".join(lines)
