"""Learning rates as functions of the steps done before."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from seq2seq_jax.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """The schedule of the optimizer's own fields; groups may have others."""
    return schedule(config.schedule, config.learning_rate, config.warmup_steps, num_steps, config.final_fraction)


def schedule(name: str, peak: float, warmup: int, num_steps: int, final_fraction: float = 0.0) -> optax.Schedule:
    """Linear growth over the warm-up, then what `name` says, as a function of the steps done before.

    Step t (from 0) of the warm-up has the rate of t + 1 steps, so that the first step moves. inverse_sqrt is
    peak * sqrt(warmup / (t + 1)) (Vaswani et al. 2017). noam is peak * min((t + 1)^-0.5, (t + 1) * warmup^-1.5), its
    warm-up included (Liu & Lapata 2019; Rothe et al. 2020 with peak = 0.05 / sqrt(hidden size)).
    """
    rest = max(1, num_steps - warmup)
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=final_fraction),
        "inverse_sqrt": lambda t: peak * jnp.sqrt(warmup / (warmup + t + 1)),
        "linear": optax.linear_schedule(peak, peak * final_fraction, rest),
        "noam": lambda t: peak * jnp.minimum((t + 1.0) ** -0.5, (t + 1.0) * warmup**-1.5),
    }[name]
    if warmup == 0 or name == "noam":
        return after
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1)), after], [warmup])
