"""One training step: a pure function of state and batch. Where it runs is decided around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import NamedSharding

from seq2seq_jax.losses import IGNORED, token_losses
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.parallel.mesh import state_shardings
from seq2seq_jax.parallel.rules import constrain

Batch = Mapping[str, jax.Array]


@struct.dataclass
class TrainState:
    """step: int32 scalar, steps done. params: once-stored. opt_state: optax's."""

    step: jax.Array
    params: Any
    opt_state: Any

    @classmethod
    def create(cls, params: Any, tx: optax.GradientTransformation) -> TrainState:
        """The state before the first step; on the mesh of `params`, if they are on one (see `state_shardings`)."""
        begin = lambda params: (jnp.zeros((), jnp.int32), tx.init(params))
        if isinstance(getattr(jax.tree.leaves(params)[0], "sharding", None), NamedSharding):
            shapes = jax.eval_shape(begin, params)
            begin = jax.jit(begin, out_shardings=state_shardings(shapes, params))
        step, opt_state = begin(params)
        return cls(step, params, opt_state)

    def shardings(self) -> TrainState:
        """Where each array of the state lives."""
        return jax.tree.map(lambda x: x.sharding, self)


def loss_and_grads(
    model: EncoderDecoder,
    params: Any,
    batch: Batch,
    rng: jax.Array | None = None,
    axis_name: str | None = None,
    *,
    label_smoothing: float = 0.0,
    accumulation: int = 1,
    frozen: Any = None,
) -> tuple[jax.Array, Any, jax.Array]:
    """The mean loss over all target tokens, its gradient, and their number.

    Args:
      batch: arguments of `model.apply`, labels [batch, target] among them.
      rng: for dropout; None: none.
      axis_name: the pmap axis over which the batch is split; sums go over it, so that uneven parts weigh rightly.
      accumulation: parts of the batch that are worked on one after the other; each weighs by its target tokens.
      frozen: a tree of booleans like `params`; where true, the gradient is zero and not computed. None: nowhere.
    """
    total = (lambda x: x) if axis_name is None else (lambda x: jax.lax.psum(x, axis_name))
    count = total(jnp.sum(batch["labels"] != IGNORED))

    def objective(params, part, rng):
        if frozen is not None:
            params = jax.tree.map(lambda p, fixed: jax.lax.stop_gradient(p) if fixed else p, params, frozen)
        rngs = None if rng is None else {"dropout": rng}
        logits = model.apply({"params": params}, **part, train=rng is not None, rngs=rngs).logits
        return jnp.sum(token_losses(logits, part["labels"], label_smoothing=label_smoothing)) / count

    value_and_grad = jax.value_and_grad(objective)
    if accumulation == 1:
        loss, grads = value_and_grad(params, batch, rng)
    else:

        def add(sums, numbered):
            number, part = numbered
            part_rng = None if rng is None else jax.random.fold_in(rng, number)
            return jax.tree.map(jnp.add, sums, value_and_grad(params, part, part_rng)), None

        zeros = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
        parts = jax.tree.map(lambda x: _split(x, accumulation), dict(batch))
        (loss, grads), _ = jax.lax.scan(add, zeros, (jnp.arange(accumulation), parts))
    return total(loss), jax.tree.map(total, grads), count


def _split(x: jax.Array, parts: int) -> jax.Array:
    """[batch, ...] as [parts, batch / parts, ...]; every parts-th row, so that rows stay on their devices."""
    if x.shape[0] % parts:
        raise ValueError(f"a batch of {x.shape[0]} does not divide into {parts} parts; change batch.accumulation")
    split = jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)
    return constrain(split, (None, "batch", *(None,) * (x.ndim - 1)))


def make_train_step(
    model: EncoderDecoder,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    dropout: bool = True,
    axis_name: str | None = None,
    **options: Any,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The step function; its random numbers follow from the seed and the step alone, so a restart repeats them.

    Args:
      options: label_smoothing, accumulation and frozen of `loss_and_grads`.

    Returns:
      A pure function (state, batch) -> (state, metrics: loss, tokens, grad_norm, learning_rate).
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        rng = None
        if dropout:
            rng = jax.random.fold_in(jax.random.key(seed), state.step)
            rng = rng if axis_name is None else jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
        loss, grads, count = loss_and_grads(model, state.params, batch, rng, axis_name, **options)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "tokens": count,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": schedule(state.step),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step
