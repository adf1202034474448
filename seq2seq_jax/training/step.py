"""One training step: a pure function of state and batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from seq2seq_jax.config import LossConfig
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.models.losses import IGNORED, label_weights
from seq2seq_jax.parallel.axes import constrain
from seq2seq_jax.training.groups import ParameterGroups
from seq2seq_jax.training.skip_step import skip_step
from seq2seq_jax.training.state import TrainState, update_average

Batch = Mapping[str, jax.Array]


@dataclass(frozen=True)
class StepConfig:
    """What a training step does, apart from its optimizer.

    Attributes:
      seed: of dropout's random bits. dropout: whether it acts. dropout_bits: jax's name of the bits' generator.
      loss: see `LossConfig`.
      accumulation: parts of the batch that are worked on one after the other; each weighs by its target tokens, or
        by their weights.
      axis_name: the pmap axis over which the batch is split; sums go over it, so that uneven parts weigh rightly.
      ema_decay: of state.ema, if the state has it.
      skip_above: see `skip_step`. scale_loss: whether the loss is scaled by state.skip_state.loss_scale (float16).
      update_norm: whether that is among the metrics; for it alone XLA writes all updates to memory on a CPU.
    """

    seed: int = 0
    dropout: bool = True
    dropout_bits: str = "threefry2x32"
    loss: LossConfig = LossConfig()
    accumulation: int = 1
    axis_name: str | None = None
    ema_decay: float | None = None
    skip_above: float | None = None
    scale_loss: bool = False
    update_norm: bool = True


def loss_and_grads(
    model: EncoderDecoder,
    params: Any,
    batch: Batch,
    rng: jax.Array | None = None,
    config: StepConfig = StepConfig(),
    *,
    frozen: Any = None,
    loss_scale: jax.Array | None = None,
) -> tuple[jax.Array, Any, jax.Array]:
    """The mean loss over all target tokens, its gradient, and their number.

    Args:
      batch: arguments of `model.apply`, labels [batch, target] among them; with loss_weights the mean is weighted, over
        all parts and devices.
      rng: for dropout; None: none.
      config: of which loss, accumulation and axis_name are read.
      frozen: a tree of booleans like `params`; where true, the gradient is zero and not computed. None: nowhere.
      loss_scale: what the loss is multiplied by on the way back, so that float16 holds its gradients; the results are
        without it.
    """
    axis_name, accumulation = config.axis_name, config.accumulation
    total = (lambda x: x) if axis_name is None else (lambda x: jax.lax.psum(x, axis_name))
    count = total(jnp.sum(batch["labels"] != IGNORED))
    weights = label_weights(batch.get("loss_weights"), batch["labels"], batch.get("decoder_pack_ids"))
    weight = count if weights is None else total(jnp.sum(weights))

    def objective(params, part, rng):
        if frozen is not None:
            params = jax.tree.map(lambda p, fixed: jax.lax.stop_gradient(p) if fixed else p, params, frozen)
        rngs = None if rng is None else {"dropout": rng}
        options = {"train": rng is not None, "rngs": rngs, "loss_config": config.loss}
        mean = jnp.sum(model.apply({"params": params}, **part, **options, method="token_losses")) / weight
        return mean if loss_scale is None else mean * loss_scale

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
    if loss_scale is not None:
        loss, grads = jax.tree.map(lambda x: x / loss_scale, (loss, grads))
    return total(loss), jax.tree.map(total, grads), count


def _split(x: jax.Array, parts: int) -> jax.Array:
    """[batch, ...] as [parts, batch / parts, ...]; every parts-th row, so that rows stay on their devices."""
    if x.shape[0] % parts:
        raise ValueError(f"a batch of {x.shape[0]} does not divide into {parts} parts; change batch.accumulation")
    split = jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)  # [parts, batch / parts, ...]
    return constrain(split, (None, "batch", *(None,) * (x.ndim - 1)))


def make_train_step(
    model: EncoderDecoder,
    tx: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    config: StepConfig = StepConfig(),
    *,
    groups: ParameterGroups | None = None,
    merge: Callable[[Any], Any] | None = None,
    frozen: Any = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The step function; its random numbers follow from the seed and the step alone, so a restart repeats them.

    A step that `skip_step` skips is counted and changes nothing else: parameters, moments and averages stay, and
    schedules do not advance.

    Args:
      tx: of `optimizer`. Its update takes whether the step is `good`, and leaves its state as it is where it is not;
        another optimizer's (optax.with_extra_args_support) would advance.
      schedule: for the metric learning_rate where there are no groups; tx has its own.
      groups: those of tx; their metrics are added, and what is not trained is left out of the gradient's norm.
      merge: makes the model's parameters of the trained ones (`lora.merge_adapters`); None: they are the same.
      frozen: see `loss_and_grads`; a tree like the merged parameters.

    Returns:
      A pure function (state, batch) -> (state, metrics: loss, tokens, grad_norm, update_norm, learning_rate, skipped
      and skipped_in_a_row, loss_scale if there is one, and those of the groups).
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        rng = None
        if config.dropout:
            rng = jax.random.fold_in(jax.random.key(config.seed, impl=config.dropout_bits), state.step)
            rng = rng if config.axis_name is None else jax.random.fold_in(rng, jax.lax.axis_index(config.axis_name))
        params, pull = (state.params, None) if merge is None else jax.vjp(merge, state.params)
        scale = {"loss_scale": state.skip_state.loss_scale} if config.scale_loss else {}
        loss, grads, tokens = loss_and_grads(model, params, batch, rng, config, frozen=frozen, **scale)
        grads = grads if pull is None else pull(grads)[0]
        count = state.step - state.skip_state.skipped
        grads = grads if groups is None else groups.mask_gradients(grads, count)
        norm = optax.tree.norm(grads)
        options = {"skip_above": config.skip_above, "loss_scale": config.scale_loss}
        skip, skip_state = skip_step(state.skip_state, loss, norm, **options)
        good = ~skip

        updates, opt_state = tx.update(grads, state.opt_state, state.params, good=good)
        params = optax.apply_updates(state.params, updates)
        ema = update_average(state.ema, params, config.ema_decay)
        ema = jax.tree.map(lambda new, old: jnp.where(good, new, old), ema, state.ema)
        metrics = {
            "loss": loss,
            "tokens": tokens,
            "grad_norm": norm,
            **({"update_norm": optax.tree.norm(updates)} if config.update_norm else {}),
            "learning_rate": schedule(count),
            "skipped": skip_state.skipped,
            "skipped_in_a_row": skip_state.in_a_row,
            **scale,
            **({} if groups is None else groups.metrics(grads, updates if config.update_norm else None, count)),
        }
        return TrainState(state.step + 1, params, opt_state, skip_state, ema), metrics

    return train_step
