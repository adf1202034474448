"""Plain data parallelism by pmap: a copy of the state on each device, the batch split by rows.

`jax.jit` with shardings (make_mesh, shard_batch) does this and more; pmap is for steps that name its axis themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

AXIS = "batch"


def pmap_step(step: Callable[[Any, Any], tuple[Any, Any]], *, donate: bool = True) -> Callable:
    """`step(state, batch) -> (state, metrics)`, made with axis_name=AXIS, over all local devices.

    The result takes `replicate`d state and a `split` batch.
    """
    return jax.pmap(step, axis_name=AXIS, donate_argnums=(0,) if donate else ())


def replicate(tree: Any, devices: int | None = None) -> Any:
    """Every leaf with a leading axis of one copy per device."""
    count = devices or jax.local_device_count()
    return jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (count, *np.shape(x))), tree)


def unreplicate(tree: Any) -> Any:
    """The first device's copy."""
    return jax.tree.map(lambda x: x[0], tree)


def split(batch: Mapping[str, np.ndarray], devices: int | None = None) -> dict[str, np.ndarray]:
    """Rows [batch, ...] as [devices, batch / devices, ...].

    Raises:
      ValueError: if the batch does not divide.
    """
    count, out = devices or jax.local_device_count(), {}
    for name, array in batch.items():
        if array.shape[0] % count:
            raise ValueError(f"{name} has a batch of {array.shape[0]} for {count} devices; give a multiple of {count}")
        out[name] = np.asarray(array).reshape(count, -1, *array.shape[1:])
    return out
