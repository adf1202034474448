"""The store of a run's checkpoints: an Orbax CheckpointManager that keeps the last and the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from seq2seq_jax.pretrained.orbax import PARAMS
from seq2seq_jax.weights.params import VOCAB_PARAMS


class Store:
    """The checkpoints of a run: `directory`/<step>/ with params (as `restore_params` reads them), optimizer, position.

    The last `keep` and the best are kept. `save` returns before all is written; `close` waits for it.
    """

    def __init__(
        self, directory: str | Path, *, keep: int, rank: Callable[[Mapping[str, float]], float], read_only: bool = False
    ):
        """Opens the directory, which is made where it is missing.

        Args:
          rank: from a checkpoint's scores a number, the higher the better.
        """
        self.directory = Path(directory).absolute()
        self._rank = rank
        policy = managers.AnyPreservationPolicy(
            [
                managers.LatestN(keep),
                managers.BestN(n=1, get_metric_fn=rank, keep_checkpoints_without_metrics=False),
            ]
        )
        # With best_fn the manager writes the scores.
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, best_fn=rank, read_only=read_only)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(
        self, step: int, params: Any, optimizer: Any, position: Mapping[str, Any], scores: Mapping[str, float] | None
    ) -> None:
        """Writes one checkpoint; `position` is JSON."""
        items = {
            PARAMS: ocp.args.PyTreeSave(params),
            "optimizer": ocp.args.PyTreeSave(optimizer),
            "position": ocp.args.JsonSave(dict(position)),
        }
        metrics = None if scores is None else dict(scores)
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True)

    def scored(self, step: int) -> bool:
        """Whether a step has scores."""
        self._manager.wait_until_finished()
        return bool(self._manager.metrics(step))

    def add_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Adds scores to a step that was saved without, in the file that CheckpointManager reads."""
        name = "metrics"
        writer = ocp.Checkpointer(ocp.JsonCheckpointHandler(filename=name))
        writer.save(self.directory / str(step) / name, args=ocp.args.JsonSave(dict(scores)))
        self._manager.reload()

    def latest(self) -> int | None:
        """The last step that has a checkpoint."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step with the best scores; None if none has any."""
        self._manager.wait_until_finished()
        scored = {step: self._manager.metrics(step) for step in self._manager.all_steps()}
        ranks = {step: self._rank(scores) for step, scores in scored.items() if scores}
        return max(ranks, key=lambda step: (ranks[step], step)) if ranks else None

    def position(self, step: int) -> dict[str, Any]:
        """The position (JSON) that was saved with a step."""
        args = ocp.args.Composite(position=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["position"]

    def restore(self, step: int, params: Any, optimizer: Any) -> tuple[Any, Any]:
        """Parameters and optimizer state of a step, with the shapes, dtypes and shardings of those given (None: not
        read).

        The padding of vocabularies may differ from that of the checkpoint.

        Raises:
          ValueError: if the checkpoint has another structure or, vocabularies aside, other shapes.
        """
        items = {}
        for name, like in ((PARAMS, params), ("optimizer", optimizer)):
            if like is None:
                continue
            arguments = jax.tree_util.tree_map_with_path(_restore_argument, like)
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
            items[name] = ocp.args.PyTreeRestore(item=shapes, restore_args=arguments)
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return restored.get(PARAMS), restored["optimizer"]

    def close(self) -> None:
        """Waits until all is written."""
        self._manager.close()


def _restore_argument(path: tuple, like: jax.Array) -> ocp.ArrayRestoreArgs:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    # Not strict where the vocabulary may be padded for another mesh; a parameter's path is a part of its state's.
    strict = not any(f"/{leaf}/" in f"/{name}/" for leaf in VOCAB_PARAMS)
    return ocp.ArrayRestoreArgs(dtype=like.dtype, sharding=like.sharding, global_shape=like.shape, strict=strict)
