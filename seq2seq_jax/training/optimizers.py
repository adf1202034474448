"""Optimizers: each array has one of optax's algorithms, and each layer its own rate, decay and first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from seq2seq_jax.config import OptimizerConfig, nearest
from seq2seq_jax.training.groups import ArraySettings, ParameterGroups, map_paths


class OptimizerState(NamedTuple):
    """count: int32 scalar, updates done. arrays: a tree like the parameters, with optax's state of each array."""

    count: jax.Array
    arrays: dict[str, Any]


def optimizer(config: OptimizerConfig, groups: ParameterGroups) -> optax.GradientTransformationExtraArgs:
    """Clips by the global norm, then updates each array by its algorithm with decoupled weight decay; with adamw this
    is torch.optim.AdamW with parameter groups.

    The update of one layer is -rate * factor * (direction + decay * parameter), where rate and decay are its group's.
    The layers of a stacked array are updated one by one (vmap), each with a state of its own: the result is that of
    separate arrays, whatever the algorithm. Frozen arrays have no state and a zero update. The state of a layer that is
    not trained yet stays at its initial value, its count of steps included.

    `update` takes gradients of `ParameterGroups.mask_gradients`, and `good`, a bool scalar: where it is false, the
    update is zero and the state stays.
    """

    def init(params: Mapping[str, Any]) -> OptimizerState:
        def init_array(path: str, x: jax.Array) -> Any:
            if groups.is_frozen(path):
                return optax.EmptyState()
            settings = groups.arrays[path]
            init_layer = algorithm(config, settings, x.shape[int(settings.stacked) :]).init
            return jax.vmap(init_layer)(x) if settings.stacked else init_layer(x)

        return OptimizerState(jnp.zeros((), jnp.int32), map_paths(init_array, params))

    def update(
        grads: Mapping[str, Any], state: OptimizerState, params: Mapping[str, Any], *, good: jax.Array | bool = True
    ) -> tuple[Any, OptimizerState]:
        rates, decays = groups.learning_rates(state.count), [group.weight_decay for group in groups.groups]
        clip = 1.0 if not config.clip_norm else jnp.minimum(1.0, config.clip_norm / optax.tree.norm(grads))

        def update_array(path: str, grad: jax.Array, array_state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
            if groups.is_frozen(path):
                return jnp.zeros_like(x), array_state
            settings = groups.arrays[path]
            trained = groups.trained(path, state.count)
            active = jnp.asarray(good) if trained is None else good & trained  # [rows] or []
            update_layer = algorithm(config, settings, x.shape[int(settings.stacked) :]).update
            if settings.stacked:
                update_layer, active = jax.vmap(update_layer), jnp.broadcast_to(active, x.shape[:1])
            direction, new_state = update_layer((grad * clip).astype(grad.dtype), array_state, x, active)
            factors = jnp.asarray(settings.factors if settings.stacked else settings.factors[0], jnp.float32)
            rate = settings.broadcast(x, settings.per_row(rates) * factors)
            decay = settings.broadcast(x, settings.per_row(decays))
            change = (-rate * (direction + decay * x)).astype(x.dtype)
            return jnp.where(settings.broadcast(x, active), change, 0.0), new_state

        both = map_paths(update_array, grads, state.arrays, params)
        updates, arrays = (map_paths(lambda _, pair, i=i: pair[i], both) for i in (0, 1))
        count = jnp.where(good, optax.safe_increment(state.count), state.count)
        return updates, OptimizerState(count, arrays)

    return optax.GradientTransformationExtraArgs(init, update)


class Algorithm(NamedTuple):
    """The update rule of one layer's array. init: of optax. update: (gradient, state, array, active) -> (direction,
    state), gradient and direction of the array's shape; where active, a bool scalar, is false, the state stays and the
    direction means nothing."""

    init: Callable
    update: Callable


def algorithm(config: OptimizerConfig, settings: ArraySettings, shape: tuple[int, ...]) -> Algorithm:
    """The algorithm of one layer's array of `shape`, without learning rate and decay."""
    if settings.algorithm not in ALGORITHMS:
        raise ValueError(f"optimizer {settings.algorithm!r} is unknown: {nearest(settings.algorithm, ALGORITHMS)}")
    return ALGORITHMS[settings.algorithm](config, settings, shape)


def _adamw(config: OptimizerConfig, settings: ArraySettings, shape: tuple[int, ...]) -> Algorithm:
    """optax.scale_by_adam, with the direction computed from the state that is kept: so XLA reads each old moment once
    and writes the new one in its place; with optax's, it copies all of them first."""
    b1, b2 = config.b1, config.b2

    def update(grad: jax.Array, old: optax.ScaleByAdamState, _: Any, active: jax.Array) -> tuple[jax.Array, Any]:
        mu, nu = b1 * old.mu + (1 - b1) * grad, b2 * old.nu + (1 - b2) * jnp.square(grad)
        new = optax.ScaleByAdamState(optax.safe_increment(old.count), mu.astype(old.mu.dtype), nu)
        new = _select(active, new, old)
        mean, square = new.mu * (1 / (1 - b1**new.count)), new.nu * (1 / (1 - b2**new.count))
        return mean / (jnp.sqrt(square) + config.eps), new

    return Algorithm(optax.scale_by_adam(b1, b2, config.eps).init, update)


def _lion(config: OptimizerConfig, settings: ArraySettings, shape: tuple[int, ...]) -> Algorithm:
    return _from_optax(optax.scale_by_lion(config.b1, config.b2))


def _adafactor(config: OptimizerConfig, settings: ArraySettings, shape: tuple[int, ...]) -> Algorithm:
    """optax.adafactor's settings without momentum (Shazeer & Stern 2018): a kernel is one matrix of all inputs by all
    outputs, the heads of an attention together; the rate is relative to the array's root mean square."""
    parts = (optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms())
    return _from_optax(_as_matrix(optax.chain(*parts), settings, shape))


def _muon(config: OptimizerConfig, settings: ArraySettings, shape: tuple[int, ...]) -> Algorithm:
    """Muon (Jordan 2024): each head's [hidden, head_dim] of query, key and value and [head_dim, hidden] of the output
    is a matrix of its own, and so is each other kernel. Scaled by 0.2 * sqrt(larger side), so that a matrix moves as
    far as by adamw, and the learning rate and decay of one serve the other (Liu et al. 2025)."""
    reduction, output = matrix_axes(settings.inputs, len(shape))
    dimensions = optax.contrib.MuonDimensionNumbers(reduction, output)
    muon = optax.contrib.scale_by_muon(beta=config.muon_momentum, weight_dimension_numbers=dimensions)
    return _from_optax(optax.chain(muon, optax.scale(0.2 * math.sqrt(max(shape[reduction], shape[output])))))


# Names of config.optimizer.OPTIMIZERS -> (config, settings of the array, shape of one layer) -> Algorithm.
ALGORITHMS = {"adafactor": _adafactor, "adamw": _adamw, "lion": _lion, "muon": _muon}


def _from_optax(tx: optax.GradientTransformation) -> Algorithm:
    def update(grad: jax.Array, old: Any, x: jax.Array, active: jax.Array) -> tuple[jax.Array, Any]:
        direction, new = tx.update(grad, old, x)
        return direction, _select(active, new, old)

    return Algorithm(tx.init, update)


def _select(active: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(active, a, b), new, old)


def matrix_axes(inputs: int, ndim: int) -> tuple[int, int]:
    """The axes of a kernel that are the rows and columns of muon's matrix; another one, if any, is its heads."""
    return (0, ndim - 1) if inputs == 1 else (inputs - 1, ndim - 1)


def _as_matrix(
    tx: optax.GradientTransformation, settings: ArraySettings, shape: tuple[int, ...]
) -> optax.GradientTransformation:
    """`tx` on a kernel [*inputs, *outputs] reshaped to [inputs, outputs]; on other arrays as they are."""
    if settings.inputs is None:
        return tx
    flat = lambda x: x.reshape(math.prod(shape[: settings.inputs]), -1)

    def update(grad: jax.Array, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        direction, state = tx.update(flat(grad), state, flat(x))
        return direction.reshape(shape), state

    return optax.GradientTransformation(lambda x: tx.init(flat(x)), update)
