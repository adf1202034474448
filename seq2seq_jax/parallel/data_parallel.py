"""Plain data parallelism by pmap: a copy of the state on each device, the batch split by rows.

`jax.jit` with shardings (make_mesh, shard_batch) does this and more; pmap is for steps that name its axis themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"


class PmapStep:
    """A step over copies of its state, called like a jitted one: `state, metrics = step(state, batch)`.

    The state is what `replicate` gives and the batch a host's arrays [batch, ...], which it splits; the metrics are
    those of the first device. The state that is given is consumed.
    """

    def __init__(self, step: Callable[[Any, Any], tuple[Any, Any]], devices: Sequence | None = None):
        """
        Args:
          step: `step(state, batch) -> (state, metrics)`, made with axis_name=AXIS.
          devices: default: all local ones.
        """
        self.devices = list(jax.local_devices() if devices is None else devices)
        self._mapped = jax.pmap(step, axis_name=AXIS, devices=self.devices, donate_argnums=0)

    def __call__(self, state: Any, batch: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
        state, metrics = self._mapped(state, split(batch, len(self.devices)))
        return state, unreplicate(metrics)

    def lower(self, state: Any, batch: Mapping[str, np.ndarray]) -> Any:
        """The step's program for arguments like these, to be compiled, as of a jitted function."""
        return self._mapped.lower(state, split(batch, len(self.devices)))

    def replicate(self, tree: Any) -> Any:
        """Every leaf with a leading axis of one copy per device, each on its device."""
        sharding = NamedSharding(Mesh(np.asarray(self.devices), (AXIS,)), PartitionSpec(AXIS))
        copies = lambda x: np.broadcast_to(np.asarray(x), (len(self.devices), *np.shape(x)))
        return jax.tree.map(lambda x: jax.device_put(copies(x), sharding), tree)


def unreplicate(tree: Any) -> Any:
    """The first device's copy, on that device."""
    return jax.tree.map(lambda x: x.addressable_data(0).reshape(x.shape[1:]), tree)


def split(batch: Mapping[str, np.ndarray], devices: int) -> dict[str, np.ndarray]:
    """Rows [batch, ...] as [devices, batch / devices, ...].

    Raises:
      ValueError: if the batch does not divide.
    """
    out = {}
    for name, array in batch.items():
        if array.shape[0] % devices:
            raise ValueError(
                f"{name} has a batch of {array.shape[0]} for {devices} devices; give a multiple of {devices}"
            )
        out[name] = np.asarray(array).reshape(devices, -1, *array.shape[1:])
    return out
