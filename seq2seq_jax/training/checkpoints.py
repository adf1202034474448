"""What a run writes into its workdir so that it can go on: its config and its checkpoints."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from seq2seq_jax.config import TrainConfig
from seq2seq_jax.parallel.multihost import barrier, is_first
from seq2seq_jax.training.guard import Guard
from seq2seq_jax.training.state import TrainState
from seq2seq_jax.training.store import Store
from seq2seq_jax.weights.workdir import CHECKPOINTS, CONFIG, rank


def open_store(workdir: Path, best: str, keep: int = 1, *, read_only: bool = False) -> Store:
    """The checkpoints of a workdir; the best is the one with the best score named `best`."""

    return Store(workdir / CHECKPOINTS, keep=keep, rank=lambda scores: rank(scores, best), read_only=read_only)


def claim(workdir: Path, config: TrainConfig, store: Store) -> None:
    """Writes the config into the workdir.

    Raises:
      ValueError: if checkpoints of another config lie there; says what differs.
    """
    path, now = workdir / CONFIG, json.loads(json.dumps(dataclasses.asdict(config)))
    if store.latest() is not None and path.exists():
        before, after = (dict(_flat(tree)) for tree in (json.loads(path.read_text(encoding="utf-8")), now))
        free = set(_may_change(TrainConfig))
        names = [n for n in sorted({*before, *after}) if n not in free and before.get(n) != after.get(n)]
        if names:
            changes = "; ".join(f"{n} was {before.get(n)!r} and is {after.get(n)!r}" for n in names)
            raise ValueError(
                f"{workdir} holds step {store.latest()} of a run with another config: {changes}; set that back to go"
                " on, or give another workdir"
            )
    if is_first():
        path.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
    barrier("claim")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _may_change(cls: type, prefix: str = "") -> Iterator[str]:
    """Paths of the fields that a resumed run may have otherwise."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _may_change(hints[field.name], f"{prefix}{field.name}.")
        elif field.metadata["may_change"]:
            yield f"{prefix}{field.name}"


def save(
    store: Store,
    step: int,
    state: TrainState,
    usable: Any,
    fingerprint: str,
    scores: Mapping[str, float] | None,
    *,
    whole: bool,
) -> None:
    """Writes the state and the position in the plan (the number of steps, and which data it counts in).

    Args:
      usable: the parameters that are evaluated and exported.
      whole: they are others than the trained ones (averages, adapters), so that both are written.
    """
    position = {"step": step, "data": fingerprint}
    store.save(step, usable, _rest(state, whole=whole), position, scores)


def _rest(state: TrainState, *, whole: bool) -> dict[str, Any]:
    """What a checkpoint has beside the usable parameters; `whole`: the trained ones among it."""
    rest = {"opt_state": state.opt_state, "guard": vars(state.guard)}
    if state.ema is not None:
        rest["ema"] = state.ema
    return {**rest, "params": state.params} if whole else rest


def restore(store: Store, step: int, state: TrainState, fingerprint: str, *, whole: bool) -> TrainState:
    """The state of a step, placed as `state` is.

    Args:
      whole: the usable parameters are others than the trained ones, so that both were written.

    Raises:
      ValueError: if the training data is not what it was.
    """
    position = store.position(step)
    if position["data"] != fingerprint:
        raise ValueError(
            f"{store.directory} was trained on other data: its examples had the fingerprint {position['data']}, and"
            f" now it is {fingerprint}; bring the data back to go on, or give another workdir"
        )
    params, rest = store.restore(step, None if whole else state.params, _rest(state, whole=whole))
    number = jnp.full_like(state.step, position["step"])
    params = rest["params"] if whole else params
    return TrainState(number, params, rest["opt_state"], Guard(**rest["guard"]), rest.get("ema"))
