"""Schedules and optimizers."""

from __future__ import annotations

import optax

from seq2seq_jax.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Linear from 0 over the warm-up, then linear to final_fraction at `num_steps`."""
    peak, warmup = config.learning_rate, config.warmup_steps
    decay = optax.linear_schedule(peak, peak * config.final_fraction, max(1, num_steps - warmup))
    if warmup == 0:
        return decay
    # Step t (from 0) has the rate of t + 1 steps, so that the first step moves (as torch schedulers that start at 1).
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1)), decay], [warmup])


def optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Clipping, then AdamW (torch.optim.AdamW: decoupled decay on every parameter)."""
    adamw = optax.adamw(
        learning_rate(config, num_steps), b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay
    )
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    return optax.chain(*clip, adamw)
