"""Which steps count: those with a finite loss and gradient of an ordinary size; and the loss scale of float16."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

FIRST_SCALE, GROW_AFTER = 2.0**15, 2000
NORMS, KNOWN = 100, 10


@struct.dataclass
class Guard:
    """Scalars.

    Attributes:
      skipped: steps that changed nothing. in_a_row: the last ones that did and should not have, 0 after a good one.
      norms: good steps so far. mean_norm: of their gradients, over about the last 100.
      loss_scale: what the loss is multiplied by before the backward pass. since: good steps since it changed.
    """

    skipped: jax.Array
    in_a_row: jax.Array
    norms: jax.Array
    mean_norm: jax.Array
    loss_scale: jax.Array
    since: jax.Array

    @classmethod
    def create(cls, *, loss_scale: bool = False) -> Guard:
        """loss_scale: it begins at 2^15, else it is 1."""
        whole, real = (lambda: jnp.zeros((), jnp.int32)), (lambda x: jnp.full((), x, jnp.float32))
        return cls(whole(), whole(), whole(), real(0.0), real(FIRST_SCALE if loss_scale else 1.0), whole())


def judge(
    guard: Guard, loss: jax.Array, norm: jax.Array, *, skip_above: float | None = None, loss_scale: bool = False
) -> tuple[jax.Array, Guard]:
    """Whether a step is good (bool scalar), and the guard after it.

    A step is not good if its loss or its gradient's norm is not finite or if, after ten good ones, the norm is above
    skip_above times the running mean of theirs (their mean at first, then an exponential one over 100 steps).

    Args:
      loss_scale: a gradient that is not finite, of a finite loss, halves the scale until it is 1 and does not count as
        one in a row; 2000 good steps double it (Micikevicius et al. 2018).
    """
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    if skip_above is not None:
        good &= (guard.norms < KNOWN) | (norm <= skip_above * guard.mean_norm)
    norms = guard.norms + good
    mean = guard.mean_norm + (norm - guard.mean_norm) / jnp.clip(norms, 1, NORMS)
    scale, since, overflow = guard.loss_scale, guard.since, jnp.zeros((), bool)
    if loss_scale:
        overflow = jnp.isfinite(loss) & ~jnp.isfinite(norm) & (scale > 1.0)
        grows = good & (since + 1 >= GROW_AFTER)
        scale = jnp.where(overflow, scale / 2, jnp.where(grows, scale * 2, scale))
        since = jnp.where(overflow | grows, 0, since + good)
    return good, Guard(
        skipped=guard.skipped + ~good,
        in_a_row=jnp.where(good, 0, guard.in_a_row + ~overflow),
        norms=norms,
        mean_norm=jnp.where(good, mean, guard.mean_norm),
        loss_scale=scale,
        since=since,
    )
