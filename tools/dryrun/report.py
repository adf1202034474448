"""The figures of a dry run, as a table and as JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from seq2seq_jax.config import TrainConfig
from seq2seq_jax.parallel.mesh import make_mesh
from seq2seq_jax.training.setup import abstract_state, make_training
from seq2seq_jax.weights.loading import abstract_params
from tools.dryrun.chips import Chip
from tools.dryrun.compile import (
    STEPS,
    Bounds,
    DecodeReport,
    Memory,
    TrainReport,
    abstract_model,
    bounds,
    check_config,
    count_parameters,
    dry_decode,
    dry_train,
)
from tools.dryrun.cost import Cost


class Setting(NamedTuple):
    """What was compiled, and for what.

    Attributes:
      mesh: the sizes of its axes. total, trained: numbers of parameters. target: the devices, as the table names them.
    """

    chip: Chip
    mesh: Mapping[str, int]
    total: int
    trained: int
    target: str

    @property
    def chips(self) -> int:
        return math.prod(self.mesh.values())


def report(
    config: TrainConfig,
    sides: tuple[Mapping[str, Any], Mapping[str, Any]],
    devices: Sequence[Any],
    chip: Chip,
    target: str,
    parts: Sequence[str] = ("train", "decode"),
    search_dtype: Any = jnp.float32,
) -> dict[str, Any]:
    """Compiles the `parts` of a run on the config's mesh of `devices`, and returns the figures that `table` shows.

    Args:
      sides: the content of the config.json of encoder and decoder.
      target: the devices, as the table names them.
      search_dtype: the dtype of the search; a run's evaluation and scripts/generate.py compute in float32.

    Raises:
      ValueError: for a config that cannot be compiled for these devices.
    """
    check_config(config, devices)
    mesh = make_mesh(**config.mesh.sizes, devices=devices)
    model = abstract_model(config, *sides, mesh, jnp.dtype(search_dtype))
    params = abstract_params(model, mesh, jnp.float32)
    training = make_training(config, model, params, config.num_steps or STEPS)
    counts = count_parameters(abstract_state(training, params).params, training.groups.frozen)
    setting = Setting(chip, dict(mesh.shape), *counts, target)
    train = dry_train(config, model, mesh) if "train" in parts else None
    decode = dry_decode(config, model, mesh) if "decode" in parts else None
    return as_json(train, decode, setting)


def train_json(report: TrainReport, setting: Setting) -> dict[str, Any]:
    """The figures of a training step. Bytes, FLOPs and bounds are those of one chip unless the name says otherwise."""
    bucket, chips = report.bucket, setting.chips
    out = {
        "batch": {"rows": bucket.rows, "source": bucket.source_length, "target": bucket.target_length},
        "dtype": report.dtype,
        **_held(report, setting),
        "model_flops_all_chips": report.flops.useful,
        "flops_all_chips": report.flops.done,
    }
    if report.cost is None:
        return out
    times = report.bounds(setting.chip, chips)
    tokens = bucket.rows * (bucket.source_length + bucket.target_length)
    return out | {
        "compiled_flops_all_chips": report.cost.flops * chips,
        **_cost(report.cost, times),
        "mfu_bound": report.flops.useful / (times.greatest * setting.chip.flops * chips),
        "tokens_per_second_bound": tokens / times.greatest,
    }


def decode_json(report: DecodeReport, setting: Setting) -> dict[str, Any]:
    """The figures of a search. `seconds` are those of one step at the full capacity."""
    out = {
        "batch": {"rows": report.rows, "source": report.source, "beams": report.beams, "capacity": report.capacity},
        "dtype": report.dtype,
        **_held(report, setting),
    }
    if report.step is None:
        return out
    times, before = bounds(report.step, setting.chip), bounds(report.start, setting.chip)
    return out | {
        **_cost(report.step, times),
        "seconds_before_the_first_step": before._asdict(),
        "tokens_per_second_bound": report.rows / times.greatest,
        "cache_gathers": report.cache_gathers,
    }


def as_json(train: TrainReport | None, decode: DecodeReport | None, setting: Setting) -> dict[str, Any]:
    """All figures, as --output writes them."""
    out = {
        "target": setting.target,
        "chip": setting.chip.name,
        "chips": setting.chips,
        "mesh": dict(setting.mesh),
        "parameters": setting.total,
        "trained_parameters": setting.trained,
    }
    out |= {} if train is None else {"train": train_json(train, setting)}
    return out | ({} if decode is None else {"decode": decode_json(decode, setting)})


def _held(report: TrainReport | DecodeReport, setting: Setting) -> dict[str, Any]:
    memory: Memory | None = report.memory
    peak = report.needed if memory is None else memory.peak
    return {
        "bytes": {**report.held, **({} if memory is None else memory._asdict()), "peak": peak},
        "fits": memory is not None and peak <= setting.chip.memory,
    }


def _cost(cost: Cost, times: Bounds) -> dict[str, Any]:
    return {
        "flops": cost.flops,
        "bytes_moved": cost.bytes,
        "bytes_sent": cost.sent,
        "custom_kernels": cost.kernels,
        "collectives": collectives_by_kind(cost),
        "seconds": times._asdict(),
        "bound": {"seconds": times.greatest, "by": times.limit},
    }


def collectives_by_kind(cost: Cost) -> dict[str, dict[str, float]]:
    """For each kind of collective, how often it is run and the bytes that a chip sends for it."""
    counts, sent = Counter(), Counter()
    for collective, count in cost.collectives.items():
        counts[collective.kind] += count
        sent[collective.kind] += count * collective.sent
    return {kind: {"count": counts[kind], "bytes_sent": sent[kind]} for kind in sorted(counts)}


def table(figures: Mapping[str, Any]) -> str:
    """The figures of `as_json` as text, one a line."""
    mesh = " x ".join(f"{name} {size}" for name, size in figures["mesh"].items())
    rows = [
        ("devices", f"{figures['target']}; {figures['chips']} chips, figures of a {figures['chip']}"),
        ("mesh", mesh),
        ("parameters", f"{figures['parameters']:,}, of which {figures['trained_parameters']:,} are trained"),
    ]
    for name, section in (("training step", "train"), ("search", "decode")):
        if section in figures:
            rows += [("", ""), (name, ""), *_section(figures[section], figures)]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}".rstrip() for name, value in rows)


def _section(part: Mapping[str, Any], figures: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    chips, batch = figures["chips"], part["batch"]
    split = figures["chips"] // figures["mesh"]["tensor"]
    a_part = f"{batch['rows'] // split} on each of {split} parts of the mesh"
    if "capacity" in batch:
        yield "  batch", f"{batch['rows']} sources of {batch['source']} tokens ({a_part}); {batch['beams']} beams"
        yield "  computed in", f"{part['dtype']}, parameters too"
        yield "  cache", f"room for {batch['capacity']} tokens"
    else:
        yield "  batch", f"{batch['rows']} x ({batch['source']} + {batch['target']}) tokens ({a_part})"
        yield "  computed in", f"{part['dtype']}, over float32 parameters"
    for name, count in part["bytes"].items():
        if name != "peak":
            yield f"  {name}", f"{_bytes(count)} a chip"
    yield "  peak", f"{_bytes(part['bytes']['peak'])} a chip: {'fits' if part['fits'] else 'does NOT fit'}"
    if "model_flops_all_chips" in part:
        yield (
            "  FLOPs by shapes",
            f"{_flops(part['model_flops_all_chips'])}; recomputed ones too: " + _flops(part["flops_all_chips"]),
        )
    if "seconds" not in part:
        return
    yield "  FLOPs compiled", f"{_flops(part['flops'] * chips)}, {_flops(part['flops'])} a chip"
    if part["custom_kernels"]:
        yield "  custom kernels", f"{part['custom_kernels']:.0f}, whose FLOPs are not in the compiled count"
    for kind, sums in part["collectives"].items():
        yield f"  {kind}", f"{sums['count']:.0f}, {_bytes(sums['bytes_sent'])} sent by each chip"
    for name, seconds in part["seconds"].items():
        yield f"  bound by {name}", _seconds(seconds)
    yield "  bound", f"{_seconds(part['bound']['seconds'])}, by {part['bound']['by']}"
    if "mfu_bound" in part:
        yield "  MFU bound", f"{100 * part['mfu_bound']:.1f} %"
        yield "  tokens/s bound", f"{part['tokens_per_second_bound']:,.0f} (source + target)"
    else:
        yield "  before the first step", _seconds(max(part["seconds_before_the_first_step"].values()))
        yield "  tokens/s bound", f"{part['tokens_per_second_bound']:,.0f} written"
        yield "  cache exchanged", f"{part['cache_gathers']} times in a step"


def _bytes(count: float | None) -> str:
    if count is None:
        return "more than there are"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"


def _flops(count: float) -> str:
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e6:.3g} MFLOP"


def _seconds(seconds: float) -> str:
    return f"{1e3 * seconds:.4g} ms"
