"""The state of training, which each step takes and returns: parameters, optimizer state, averages and counters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seq2seq_jax.parallel.mesh import state_shardings
from seq2seq_jax.training.skip_step import SkipState


@struct.dataclass
class TrainState:
    """The state after some steps.

    Attributes:
      step: int32 scalar, steps done, skipped ones too. params: once-stored. opt_state: the optimizer's.
      skip_state: see `SkipState`. ema: moving averages of the trained parameters, a part of the tree; None: there are
        none.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    skip_state: SkipState
    ema: Any = None

    @classmethod
    def create(
        cls, params: Any, tx: optax.GradientTransformation, *, averaged: Any = None, loss_scale: bool = False
    ) -> TrainState:
        """The state before the first step; on a mesh, what belongs to a parameter is sharded as the parameter is.

        Args:
          averaged: a tree of booleans like `params`, true for those that have a moving average; None: there is none.
          loss_scale: whether there is one, for float16.
        """
        rest = (jnp.zeros((), jnp.int32), SkipState.create(loss_scale=loss_scale))
        mesh = _mesh(params)
        if mesh is None:
            opt_state = tx.init(params)
        else:
            shardings = state_shardings(jax.eval_shape(tx.init, params), params)
            opt_state = jax.jit(tx.init, out_shardings=shardings)(params)
            rest = jax.device_put(rest, NamedSharding(mesh, PartitionSpec()))
        ema = None
        if averaged is not None:
            wanted = flatten_dict(averaged)
            ema = unflatten_dict({k: jnp.copy(x) for k, x in flatten_dict(params).items() if wanted[k]})
        return cls(rest[0], params, opt_state, rest[1], ema)

    def shardings(self) -> TrainState:
        """The sharding of each array of the state."""
        return jax.tree.map(lambda x: x.sharding, self)


def _mesh(params: Any) -> Mesh | None:
    """The mesh of the parameters, if they are arrays on one."""
    for x in jax.tree.leaves(params):
        if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and isinstance(x.sharding, NamedSharding):
            return x.sharding.mesh
    return None


def update_average(ema: Any, params: Mapping[str, Any], decay: float | None) -> Any:
    """decay * average + (1 - decay) * parameter, for the parameters that have an average."""
    if ema is None:
        return None
    new = flatten_dict(params)
    chosen = unflatten_dict({path: new[path] for path in flatten_dict(ema)})
    return optax.incremental_update(chosen, ema, 1.0 - decay)


def averaged_params(state: TrainState) -> Any:
    """The parameters, those that have an average replaced by it."""
    if state.ema is None:
        return state.params
    return unflatten_dict({**flatten_dict(state.params), **flatten_dict(state.ema)})
