"""One training step: a pure function of state and batch. Where it runs is decided around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from seq2seq_jax.losses import IGNORED, token_losses
from seq2seq_jax.models.encoder_decoder import EncoderDecoder

Batch = Mapping[str, jax.Array]


@struct.dataclass
class TrainState:
    """step: int32 scalar, steps done. params: once-stored. opt_state: optax's."""

    step: jax.Array
    params: Any
    opt_state: Any

    @classmethod
    def create(cls, params: Any, tx: optax.GradientTransformation) -> TrainState:
        return cls(jnp.zeros((), jnp.int32), params, tx.init(params))


def loss_and_grads(
    model: EncoderDecoder, params: Any, batch: Batch, rng: jax.Array | None = None, axis_name: str | None = None
) -> tuple[jax.Array, Any, jax.Array]:
    """The mean loss over all target tokens, its gradient, and their number.

    Args:
      batch: arguments of `model.apply`, labels [batch, target] among them.
      rng: for dropout; None: none.
      axis_name: the pmap axis over which the batch is split; sums go over it, so that uneven parts weigh rightly.
    """
    total = (lambda x: x) if axis_name is None else (lambda x: jax.lax.psum(x, axis_name))
    count = total(jnp.sum(batch["labels"] != IGNORED))

    def objective(params):
        rngs = None if rng is None else {"dropout": rng}
        out = model.apply({"params": params}, **batch, train=rng is not None, rngs=rngs)
        return jnp.sum(token_losses(out.logits, batch["labels"])) / count

    loss, grads = jax.value_and_grad(objective)(params)
    return total(loss), jax.tree.map(total, grads), count


def make_train_step(
    model: EncoderDecoder,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    dropout: bool = True,
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The step function; its random numbers follow from the seed and the step alone, so a restart repeats them.

    Returns:
      A pure function (state, batch) -> (state, metrics: loss, tokens, grad_norm, learning_rate).
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        rng = None
        if dropout:
            rng = jax.random.fold_in(jax.random.key(seed), state.step)
            rng = rng if axis_name is None else jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
        loss, grads, count = loss_and_grads(model, state.params, batch, rng, axis_name)
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
