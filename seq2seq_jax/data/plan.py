"""Which examples make up which batch: a pure function, so that any restart and any number of hosts sees the same."""

from __future__ import annotations

import functools

import numpy as np


@functools.lru_cache(maxsize=2)
def batch_plan(num_examples: int, batch_size: int, *, seed: int, epoch: int) -> np.ndarray:
    """Indices [batches, batch_size] of one epoch: a permutation that follows from (seed, epoch); the rest is left out.

    Raises:
      ValueError: if there are fewer examples than one batch takes.
    """
    if num_examples < batch_size:
        raise ValueError(
            f"there are {num_examples} training examples and batch_size is {batch_size}; give more, or a smaller batch"
        )
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    batches = num_examples // batch_size
    plan = generator.permutation(num_examples)[: batches * batch_size].reshape(batches, batch_size)
    plan.flags.writeable = False  # it is shared by all callers
    return plan


def batch_indices(step: int, num_examples: int, batch_size: int, *, seed: int) -> np.ndarray:
    """Indices [batch_size] of the batch of optimizer step `step` (from 0)."""
    epoch, row = divmod(step, max(1, num_examples // batch_size))
    return batch_plan(num_examples, batch_size, seed=seed, epoch=epoch)[row]
