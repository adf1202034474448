"""Steps with a loss or gradient that is not finite or far too large are skipped; float16's loss scale adapts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

INITIAL_SCALE, GROWTH_INTERVAL = 2.0**15, 2000
# Steps over which the mean gradient norm is taken, and steps before it is relied on.
NORM_WINDOW, NORM_WARMUP = 100, 10


@struct.dataclass
class SkipState:
    """What `skip_step` remembers of the steps before; all scalars.

    Attributes:
      skipped: steps that were skipped. in_a_row: the last ones that were, overflows of float16 aside; 0 after a step
        that was not.
      norms: steps that were not. mean_norm: of their gradients, over about the last 100.
      loss_scale: factor on the loss in the backward pass. since: good steps since it changed.
    """

    skipped: jax.Array
    in_a_row: jax.Array
    norms: jax.Array
    mean_norm: jax.Array
    loss_scale: jax.Array
    since: jax.Array

    @classmethod
    def create(cls, *, loss_scale: bool = False) -> SkipState:
        """The state before the first step, with a loss scale of 2^15 or, without loss_scale, of 1."""
        integer, real = (lambda: jnp.zeros((), jnp.int32)), (lambda x: jnp.full((), x, jnp.float32))
        return cls(integer(), integer(), integer(), real(0.0), real(INITIAL_SCALE if loss_scale else 1.0), integer())


def skip_step(
    state: SkipState, loss: jax.Array, norm: jax.Array, *, skip_above: float | None = None, loss_scale: bool = False
) -> tuple[jax.Array, SkipState]:
    """Whether a step is to be skipped (bool scalar), and the state after it.

    A step is skipped if its loss or its gradient's norm is not finite or if, after ten good ones, the norm is above
    skip_above times the running mean of theirs (their mean at first, then an exponential one over 100 steps).

    Args:
      loss_scale: whether the scale adapts. A gradient that overflows although the loss is finite halves it, down to 1,
        and does not count as one in a row; 2000 good steps double it (Micikevicius et al. 2018).
    """
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    if skip_above is not None:
        good &= (state.norms < NORM_WARMUP) | (norm <= skip_above * state.mean_norm)
    norms = state.norms + good
    mean = state.mean_norm + (norm - state.mean_norm) / jnp.clip(norms, 1, NORM_WINDOW)
    scale, since, overflow = state.loss_scale, state.since, jnp.zeros((), bool)
    if loss_scale:
        overflow = jnp.isfinite(loss) & ~jnp.isfinite(norm) & (scale > 1.0)
        grows = good & (since + 1 >= GROWTH_INTERVAL)
        scale = jnp.where(overflow, scale / 2, jnp.where(grows, scale * 2, scale))
        since = jnp.where(overflow | grows, 0, since + good)
    return ~good, SkipState(
        skipped=state.skipped + ~good,
        in_a_row=jnp.where(good, 0, state.in_a_row + ~overflow),
        norms=norms,
        mean_norm=jnp.where(good, mean, state.mean_norm),
        loss_scale=scale,
        since=since,
    )
