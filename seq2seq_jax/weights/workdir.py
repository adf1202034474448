"""A run's workdir as a model: the export or the checkpoint of it that is meant.

workdir/config.json       the run's config
workdir/model/            the pair without its parameters: configs and tokenizers
workdir/checkpoints/N/    the checkpoint of step N: params, optimizer and position, and metrics where it was evaluated
workdir/pretrained/       the pair as `save_pretrained` writes it, at the end of the run
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from seq2seq_jax.weights.files import read_json

CONFIG, MODEL, CHECKPOINTS, EXPORT = "config.json", "model", "checkpoints", "pretrained"
LOWER_IS_BETTER = ("loss", "perplexity")


def is_workdir(path: str | os.PathLike) -> bool:
    """Whether a run wrote the directory."""
    path = Path(path).expanduser()
    return (path / MODEL).is_dir() and (path / CONFIG).is_file() and "model_type" not in read_json(path / CONFIG)


def model_directory(path: str | os.PathLike) -> str | os.PathLike:
    """The directory with the config.json and the tokenizers of the model at `path`: of a run's workdir its export, or
    else its `model/`; otherwise `path` itself."""
    if not is_workdir(path):
        return path
    workdir = Path(path).expanduser()
    return workdir / EXPORT if (workdir / EXPORT / CONFIG).exists() else workdir / MODEL


def find_model(path: str | os.PathLike, step: int | None = None) -> tuple[str | os.PathLike, Path | None]:
    """Where a model lies: (its directory, the checkpoint that has its parameters or None if the directory has them).

    Args:
      path: a run's workdir, or anything else, which is returned as it is.
      step: the checkpoint of the workdir; None: its export, or else the best checkpoint, or else the last.

    Raises:
      FileNotFoundError: if there is no such checkpoint, or if a step of something else is asked for.
    """
    if not is_workdir(path):
        if step is not None:
            raise FileNotFoundError(f"{path} is no workdir of a run, so it has no step {step}; leave step out")
        return path, None
    workdir = Path(path).expanduser()
    if step is None and (workdir / EXPORT / CONFIG).exists():
        return workdir / EXPORT, None
    checkpoints = workdir / CHECKPOINTS
    steps = sorted(int(p.name) for p in checkpoints.glob("*") if p.name.isdigit())
    if not steps:
        raise FileNotFoundError(f"{checkpoints} holds no checkpoint; let the run reach its first one")
    if step is None:
        step = _best_step(checkpoints, steps, read_json(workdir / CONFIG)["evaluation"]["best"])
    if step not in steps:
        raise FileNotFoundError(f"{checkpoints} has no step {step}; it holds {', '.join(map(str, steps))}")
    return workdir / MODEL, checkpoints / str(step)


def rank(metrics: Mapping[str, float], best: str) -> float:
    """How good metrics are by the one named `best`: higher is better, -inf where it is missing or NaN."""
    value = metrics.get(best, math.nan)
    value = -value if best in LOWER_IS_BETTER else value
    return -math.inf if math.isnan(value) else value


def _best_step(checkpoints: Path, steps: list[int], best: str) -> int | None:
    """The later one of the best steps; without metrics, the last step."""
    files = {step: checkpoints / str(step) / "metrics" / "metrics" for step in steps}
    metrics = {step: read_json(file) for step, file in files.items() if file.exists()}
    ranks = {step: rank(values, best) for step, values in metrics.items() if values}
    return max(ranks or steps, key=lambda step: (ranks.get(step, 0.0), step), default=None)
