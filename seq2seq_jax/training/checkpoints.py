"""A run's directory: its config, its checkpoints, and the pair that it trained."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from seq2seq_jax.config import DataConfig, TrainConfig, check_resumable, from_mapping
from seq2seq_jax.parallel.multihost import barrier, is_first
from seq2seq_jax.pretrained.pair import Pretrained, from_pretrained
from seq2seq_jax.text.tokenizer import Tokenizers
from seq2seq_jax.training.skip_step import SkipState
from seq2seq_jax.training.state import TrainState
from seq2seq_jax.training.store import Store
from seq2seq_jax.weights.files import read_json

CONFIG, MODEL, STORE, EXPORT = "config.json", "model", "checkpoints", "pretrained"
LOWER_IS_BETTER = ("loss", "perplexity")


def open_store(workdir: Path, best: str, keep: int = 1, *, read_only: bool = False) -> Store:
    """The checkpoints of a workdir; the best is the one with the best score named `best`."""

    def rank(scores: Mapping[str, float]) -> float:
        value = scores.get(best, math.nan)
        value = -value if best in LOWER_IS_BETTER else value
        return -math.inf if math.isnan(value) else value

    return Store(workdir / STORE, keep=keep, rank=rank, read_only=read_only)


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


class Trained(NamedTuple):
    """A pair with its tokenizers. data: the data settings of its run; None where it comes from no run."""

    pretrained: Pretrained
    tokenizers: Tokenizers
    data: DataConfig | None


def load_trained(
    path_or_id: str | Path,
    *,
    step: int | None = None,
    source_tokenizer: str | Path | None = None,
    target_tokenizer: str | Path | None = None,
    mesh: Mesh | None = None,
) -> Trained:
    """A pair with its tokenizers, from a run's workdir (its export, or else its best or last checkpoint), a directory
    that save_pretrained or torch wrote, or a hub id.

    Args:
      step: which checkpoint of a workdir; None: the export, or else the best or last.
      source_tokenizer, target_tokenizer: where the tokenizers are, if not beside the pair.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
    """
    workdir = Path(path_or_id)

    def trained(path: str | Path, data: DataConfig | None, **options: Any) -> Trained:
        tokenizers = Tokenizers.load(source_tokenizer or path, target_tokenizer or path)
        return Trained(from_pretrained(path, mesh=mesh, **options), tokenizers, data)

    if not (workdir / MODEL).is_dir():
        if step is not None:
            raise FileNotFoundError(f"{workdir} is no workdir of a run, so it has no step {step}; leave step out")
        return trained(path_or_id, None)
    config = read_json(workdir / CONFIG)
    data = from_mapping(DataConfig, config["data"], "config.data")
    export = workdir / EXPORT
    if step is None and (export / CONFIG).exists():
        return trained(export, data)
    steps = sorted(int(p.name) for p in (workdir / STORE).glob("*") if p.name.isdigit())
    if step is None and steps:
        store = open_store(workdir, config["evaluation"]["best"], read_only=True)
        best = store.best()
        step = store.latest() if best is None else best
        store.close()
    if step not in steps:
        raise FileNotFoundError(
            f"{workdir / STORE} has no step {step}; it holds {', '.join(map(str, steps)) or 'none'}"
        )
    return trained(workdir / MODEL, data, params_directory=workdir / STORE / str(step))
