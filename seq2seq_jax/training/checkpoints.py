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

from seq2seq_jax.config import DataConfig, TrainConfig, from_mapping
from seq2seq_jax.parallel.multihost import barrier, is_first
from seq2seq_jax.pretrained.pair import Pretrained, from_pretrained
from seq2seq_jax.text.tokenizer import Tokenizers
from seq2seq_jax.training.guard import Guard
from seq2seq_jax.training.state import TrainState
from seq2seq_jax.training.store import Store

CONFIG, FRAME, STORE, EXPORT = "config.json", "model", "checkpoints", "pretrained"
LOWER_IS_BETTER = ("loss", "perplexity")


def open_store(workdir: Path, best: str, keep: int = 1, *, read_only: bool = False) -> Store:
    """The checkpoints of a workdir; the best is the one with the best score named `best`."""

    def rank(scores: Mapping[str, float]) -> float:
        value = scores.get(best, math.nan)
        value = -value if best in LOWER_IS_BETTER else value
        return -math.inf if math.isnan(value) else value

    return Store(workdir / STORE, keep=keep, rank=rank, read_only=read_only)


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


class Trained(NamedTuple):
    """A pair to use. data: how the texts of its run were prepared; None where that is not known."""

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
    """A pair to use, from a run's workdir (its export, or else its best or last checkpoint), a directory that
    save_pretrained or torch wrote, or a hub id.

    Args:
      step: which checkpoint of a workdir; None: as said.
      source_tokenizer, target_tokenizer: where the tokenizers are, if not beside the pair.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
    """
    workdir = Path(path_or_id)

    def trained(path: str | Path, data: DataConfig | None, **options: Any) -> Trained:
        tokenizers = Tokenizers.load(source_tokenizer or path, target_tokenizer or path)
        return Trained(from_pretrained(path, mesh=mesh, **options), tokenizers, data)

    if not (workdir / FRAME).is_dir():
        if step is not None:
            raise FileNotFoundError(f"{workdir} is no workdir of a run, so it has no step {step}; leave step out")
        return trained(path_or_id, None)
    config = json.loads((workdir / CONFIG).read_text(encoding="utf-8"))
    data = from_mapping(DataConfig, config["data"], "config.data")
    export = workdir / EXPORT
    if step is None and (export / CONFIG).exists():
        return trained(export, data)
    kept = sorted(int(p.name) for p in (workdir / STORE).glob("*") if p.name.isdigit())
    if step is None and kept:
        store = open_store(workdir, config["evaluation"]["best"], read_only=True)
        best = store.best()
        step = store.latest() if best is None else best
        store.close()
    if step not in kept:
        raise FileNotFoundError(f"{workdir / STORE} has no step {step}; it holds {', '.join(map(str, kept)) or 'none'}")
    return trained(workdir / FRAME, data, params_directory=workdir / STORE / str(step))
