"""What a run writes into its workdir so that it can go on: its config and its checkpoints."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from seq2seq_jax.config import TrainConfig, check_resumable
from seq2seq_jax.parallel.multihost import barrier, is_first
from seq2seq_jax.training.skip_step import SkipState
from seq2seq_jax.training.state import TrainState
from seq2seq_jax.training.store import Store
from seq2seq_jax.weights.files import read_json
from seq2seq_jax.weights.workdir import CHECKPOINTS, CONFIG, rank


def open_store(workdir: Path, best: str, keep: int = 1, *, read_only: bool = False) -> Store:
    """The checkpoints of a workdir; the best is the one with the best score named `best`."""

    return Store(workdir / CHECKPOINTS, keep=keep, rank=lambda scores: rank(scores, best), read_only=read_only)


def write_config(workdir: Path, config: TrainConfig, store: Store) -> None:
    """Writes the config into the workdir.

    Raises:
      ValueError: if there are checkpoints of another config; says what differs.
    """
    path, content = workdir / CONFIG, json.loads(json.dumps(dataclasses.asdict(config)))
    if store.latest() is not None and path.exists():
        what = f"step {store.latest()} of a run with another config"
        may_change = set(_may_change(TrainConfig))
        check_resumable(workdir, what, read_json(path), content, may_change=may_change, remedy="give another workdir")
    if is_first():
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    barrier("write_config")


def _may_change(cls: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields that may differ when a run is resumed."""
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
    eval_params: Any | None,
    fingerprint: str,
    scores: Mapping[str, float] | None,
) -> None:
    """Writes the state and the position in the data: the number of steps, and the fingerprint of the examples.

    Args:
      eval_params: the parameters that are evaluated and exported, if others than the trained ones (averages, merged
        adapters): both are written then. None: the trained ones.
    """
    position = {"step": step, "data": fingerprint}
    separate = eval_params is not None
    store.save(step, eval_params if separate else state.params, _rest(state, separate), position, scores)


def _rest(state: TrainState, has_eval_params: bool) -> dict[str, Any]:
    """What a checkpoint has beside the parameters that are evaluated; the trained ones if they are others."""
    rest = {"opt_state": state.opt_state, "guard": vars(state.skip_state)}
    if state.ema is not None:
        rest["ema"] = state.ema
    return {**rest, "params": state.params} if has_eval_params else rest


def restore(store: Store, step: int, state: TrainState, fingerprint: str, *, has_eval_params: bool) -> TrainState:
    """The state of a step, with the shardings of `state`.

    Args:
      has_eval_params: whether `save` was given eval_params.

    Raises:
      ValueError: if the training data is not what it was.
    """
    position = store.position(step)
    if position["data"] != fingerprint:
        raise ValueError(
            f"{store.directory} was trained on other data: its examples had the fingerprint {position['data']}, and"
            f" now it is {fingerprint}; bring the data back to go on, or give another workdir"
        )
    params, rest = store.restore(step, None if has_eval_params else state.params, _rest(state, has_eval_params))
    number = jnp.full_like(state.step, position["step"])
    params = rest["params"] if has_eval_params else params
    return TrainState(number, params, rest["opt_state"], SkipState(**rest["guard"]), rest.get("ema"))
