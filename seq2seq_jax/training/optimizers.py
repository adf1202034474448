"""Optimizers: for each array its own of optax's algorithms, for each layer its own rate, decay and beginning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from seq2seq_jax.config import OptimizerConfig
from seq2seq_jax.training.groups import ArrayRule, Groups, map_paths


class OptimizerState(NamedTuple):
    """count: int32 scalar, updates done. arrays: a tree like the parameters, with optax's state of each array."""

    count: jax.Array
    arrays: dict[str, Any]


def optimizer(config: OptimizerConfig, groups: Groups) -> optax.GradientTransformationExtraArgs:
    """Clipping by the global norm, then for each array its algorithm and decoupled decay: with adamw,
    torch.optim.AdamW with parameter groups.

    The update of one layer is -rate * factor * (direction + decay * parameter), where rate and decay are its group's.
    Layers of a stacked array are worked on one by one (vmap), each with a state of its own: the result is that of
    separate arrays, whatever the algorithm. Frozen arrays have no state and a zero update; the state of what is not
    trained yet stays as it began, its count of steps among it.

    `update` takes gradients that `Groups.masked` made, and `good`, a bool scalar: where it is false, the update is zero
    and the state stays.
    """

    def init(params: Mapping[str, Any]) -> OptimizerState:
        def begin(path: str, x: jax.Array) -> Any:
            if groups.is_frozen(path):
                return optax.EmptyState()
            rule = groups.rules[path]
            start = algorithm(config, rule, x.shape[int(rule.stacked) :]).init
            return jax.vmap(start)(x) if rule.stacked else start(x)

        return OptimizerState(jnp.zeros((), jnp.int32), map_paths(begin, params))

    def update(
        grads: Mapping[str, Any], state: OptimizerState, params: Mapping[str, Any], *, good: jax.Array | bool = True
    ) -> tuple[Any, OptimizerState]:
        rates, decays = groups.rates(state.count), [group.weight_decay for group in groups.groups]
        share = 1.0 if not config.clip_norm else jnp.minimum(1.0, config.clip_norm / optax.tree.norm(grads))

        def step(path: str, grad: jax.Array, before: Any, x: jax.Array) -> tuple[jax.Array, Any]:
            if groups.is_frozen(path):
                return jnp.zeros_like(x), before
            rule = groups.rules[path]
            trained = groups.trained(path, state.count)
            acts = jnp.asarray(good) if trained is None else good & trained
            turn = algorithm(config, rule, x.shape[int(rule.stacked) :]).update
            if rule.stacked:
                turn, acts = jax.vmap(turn), jnp.broadcast_to(acts, x.shape[:1])
            direction, after = turn((grad * share).astype(grad.dtype), before, x, acts)
            rate = rule.each(rates) * jnp.asarray(rule.factors if rule.stacked else rule.factors[0], jnp.float32)
            decay = rule.spread(x, rule.each(decays))
            change = (-rule.spread(x, rate) * (direction + decay * x)).astype(x.dtype)
            return jnp.where(rule.spread(x, acts), change, 0.0), after

        both = map_paths(step, grads, state.arrays, params)
        updates, arrays = (map_paths(lambda _, pair, i=i: pair[i], both) for i in (0, 1))
        count = jnp.where(good, optax.safe_increment(state.count), state.count)
        return updates, OptimizerState(count, arrays)

    return optax.GradientTransformationExtraArgs(init, update)


class Algorithm(NamedTuple):
    """One layer's. init: of optax. update: (gradient, state, array, acts) -> (direction, state), gradient and direction
    of the array's shape; where acts, a bool scalar, is false, the state stays and the direction means nothing."""

    init: Callable
    update: Callable


def algorithm(config: OptimizerConfig, rule: ArrayRule, shape: tuple[int, ...]) -> Algorithm:
    """The direction of one layer's array of `shape`, its rate and decay left out.

    adamw, lion: entry by entry.
    adafactor (Shazeer & Stern 2018, optax.adafactor's settings, without momentum): kernels as matrices of all inputs by
    all outputs, the heads of an attention together; the rate is relative to the array's root mean square.
    muon (Jordan 2024): each head's [hidden, head_dim] of query, key and value and [head_dim, hidden] of the output is a
    matrix of its own, and so is each other kernel; scaled by 0.2 * sqrt(larger side), so that a matrix moves as far as
    by adamw, and the learning rate and decay of one serve the other (Liu et al. 2025).
    """
    if rule.algorithm == "adamw":
        return _adam(config)
    if rule.algorithm == "lion":
        tx = optax.scale_by_lion(config.b1, config.b2)
    elif rule.algorithm == "adafactor":
        parts = (optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms())
        tx = _as_matrix(optax.chain(*parts), rule, shape)
    else:
        reduction, output = matrix_axes(rule.inputs, len(shape))
        larger = max(shape[reduction], shape[output])
        dimensions = optax.contrib.MuonDimensionNumbers(reduction, output)
        muon = optax.contrib.scale_by_muon(beta=config.muon_momentum, weight_dimension_numbers=dimensions)
        tx = optax.chain(muon, optax.scale(0.2 * math.sqrt(larger)))

    def update(grad: jax.Array, before: Any, x: jax.Array, acts: jax.Array) -> tuple[jax.Array, Any]:
        direction, after = tx.update(grad, before, x)
        return direction, _chosen(acts, after, before)

    return Algorithm(tx.init, update)


def _chosen(acts: jax.Array, after: Any, before: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.where(acts, new, old), after, before)


def _adam(config: OptimizerConfig) -> Algorithm:
    """optax.scale_by_adam, whose direction is made of the state that stays: so XLA reads each old moment once and
    writes the new one in its place; with optax's, it copies all of them first."""
    b1, b2 = config.b1, config.b2

    def update(grad: jax.Array, before: optax.ScaleByAdamState, _: Any, acts: jax.Array) -> tuple[jax.Array, Any]:
        mu, nu = b1 * before.mu + (1 - b1) * grad, b2 * before.nu + (1 - b2) * jnp.square(grad)
        after = optax.ScaleByAdamState(optax.safe_increment(before.count), mu.astype(before.mu.dtype), nu)
        after = _chosen(acts, after, before)
        mean, square = after.mu * (1 / (1 - b1**after.count)), after.nu * (1 / (1 - b2**after.count))
        return mean / (jnp.sqrt(square) + config.eps), after

    return Algorithm(optax.scale_by_adam(b1, b2, config.eps).init, update)


def matrix_axes(inputs: int, ndim: int) -> tuple[int, int]:
    """Which axes of a kernel are muon's matrix, rows and columns; the other one, if any, counts its heads."""
    return (0, ndim - 1) if inputs == 1 else (inputs - 1, ndim - 1)


def _as_matrix(tx: optax.GradientTransformation, rule: ArrayRule, shape: tuple[int, ...]) -> Any:
    """`tx` of a kernel [*inputs, *outputs] as [inputs, outputs]; of other arrays as they are."""
    if rule.inputs is None:
        return tx
    flat = lambda x: x.reshape(math.prod(shape[: rule.inputs]), -1)

    def update(grad: jax.Array, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        direction, state = tx.update(flat(grad), state, flat(x))
        return direction.reshape(shape), state

    return optax.GradientTransformation(lambda x: tx.init(flat(x)), update)
