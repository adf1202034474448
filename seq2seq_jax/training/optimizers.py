"""Schedules, optimizers, and which parameters they leave alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from seq2seq_jax.config import OptimizerConfig, nearest


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Linear growth over the warm-up, then what config.schedule says, as a function of the steps done before.

    Step t (from 0) of the warm-up has the rate of t + 1 steps, so that the first step moves. inverse_sqrt is
    peak * sqrt(warmup_steps / (t + 1)) (Vaswani et al. 2017).
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    rest = max(1, num_steps - warmup)
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction),
        "inverse_sqrt": lambda t: peak * jnp.sqrt(warmup / (warmup + t + 1)),
        "linear": optax.linear_schedule(peak, peak * config.final_fraction, rest),
    }[config.schedule]
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1)), after], [warmup])


def optimizer(config: OptimizerConfig, num_steps: int, frozen: Any = None) -> optax.GradientTransformation:
    """Clipping, then AdamW (torch.optim.AdamW: decoupled decay on every parameter).

    Args:
      frozen: a tree of booleans like the parameters; those have no update and no optimizer state. None: none is.
    """
    adamw = optax.adamw(
        learning_rate(config, num_steps), b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay
    )
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    trained = optax.chain(*clip, adamw)
    if frozen is None:
        return trained
    return optax.partition({True: optax.set_to_zero(), False: trained}, frozen)


def frozen_parameters(params: Mapping[str, Any], patterns: Sequence[str]) -> dict[str, Any] | None:
    """A tree of booleans like `params`, true where a parameter's path begins with a match; None without patterns.

    Raises:
      ValueError: if a pattern matches nothing, or all is frozen.
    """
    if not patterns:
        return None
    flat = flatten_dict(params, sep="/")
    for pattern in patterns:
        if not any(re.match(pattern, path) for path in flat):
            raise ValueError(f"optimizer.freeze {pattern!r} matches no parameter's path: {nearest(pattern, flat)}")
    frozen = {path: any(re.match(pattern, path) for pattern in patterns) for path in flat}
    if all(frozen.values()):
        raise ValueError(f"optimizer.freeze {tuple(patterns)!r} leaves nothing to train; freeze less")
    return unflatten_dict(frozen, sep="/")
