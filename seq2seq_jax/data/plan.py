"""Which examples make up which batch: a pure function, so that any restart and any number of hosts sees the same."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from seq2seq_jax.config import BatchConfig

# Lengths of batches are multiples of this: fewer shapes, and what vector units like.
LENGTH_STEP = 8


@dataclass(frozen=True)
class Bucket:
    """One shape of batches: examples in a batch, and tokens a source and a target are padded to."""

    rows: int
    source_length: int
    target_length: int


class BatchPlan:
    """Batch t of a run, for any t from 0: it follows from the lengths, the settings, the seed and t alone.

    Each epoch holds every example once, in an order of its own. What is left over in a bucket moves on to the next
    longer one; the last batch of all is filled up with empty rows (-1), which weigh nothing.

    Attributes:
      buckets: shapes, shortest first. batches_per_epoch: the same in each epoch.
    """

    def __init__(self, source_lengths: np.ndarray, target_lengths: np.ndarray, settings: BatchConfig, *, seed: int):
        self._seed = seed
        padded = [_padded(np.maximum(lengths, 1)) for lengths in (source_lengths, target_lengths)]
        shapes = bucket_shapes(*padded, settings.buckets)
        self.buckets = tuple(Bucket(_rows(settings, *shape), *shape) for shape in shapes)
        self._bucket_of = np.searchsorted([source for source, _ in shapes], padded[0])
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)
        self.batches_per_epoch = len(self._epoch(0))

    def __getitem__(self, t: int) -> tuple[Bucket, np.ndarray]:
        """The shape of batch t, and its examples, int [rows]; -1 for an empty row."""
        epoch, row = divmod(t, self.batches_per_epoch)
        return self._epoch(epoch)[row]

    def _make_epoch(self, epoch: int) -> list[tuple[Bucket, np.ndarray]]:
        generator = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
        order = generator.permutation(len(self._bucket_of))
        batches, left = [], order[:0]
        for number, bucket in enumerate(self.buckets):
            members = np.concatenate([left, order[self._bucket_of[order] == number]])
            full = len(members) // bucket.rows * bucket.rows
            batches += [(bucket, examples) for examples in members[:full].reshape(-1, bucket.rows)]
            left = members[full:]
        if len(left):
            last = self.buckets[-1]
            batches.append((last, np.concatenate([left, np.full(last.rows - len(left), -1)])))
        return [batches[i] for i in generator.permutation(len(batches))]


def _padded(lengths: np.ndarray) -> np.ndarray:
    """Multiples of LENGTH_STEP, but none above the longest, for which a model may have no more positions."""
    return np.minimum(-(-lengths // LENGTH_STEP) * LENGTH_STEP, lengths.max())


def bucket_shapes(source_lengths: np.ndarray, target_lengths: np.ndarray, count: int) -> list[tuple[int, int]]:
    """The `count` shapes (source, target), both growing, that hold all examples with the least padding.

    An example goes into the shortest bucket that holds its source; a bucket's target length holds its own and all
    shorter buckets' targets. Found by dynamic programming over the distinct source lengths.
    """
    lengths, inverse = np.unique(source_lengths, return_inverse=True)
    targets = np.zeros(len(lengths), int)
    np.maximum.at(targets, inverse, target_lengths)
    width = lengths + np.maximum.accumulate(targets)
    below = np.concatenate([[0], np.cumsum(np.bincount(inverse))])
    # cost[j]: of the first j lengths in the buckets so far; before[k][j]: where bucket k then begins.
    cost, before = np.where(np.arange(len(lengths) + 1) == 0, 0.0, np.inf), []
    for _ in range(min(count, len(lengths))):
        new, start = np.full(len(lengths) + 1, np.inf), np.zeros(len(lengths) + 1, int)
        for j in range(1, len(lengths) + 1):
            options = cost[:j] + (below[j] - below[:j]) * width[j - 1]
            start[j] = np.argmin(options)
            new[j] = options[start[j]]
        cost, before = new, [*before, start]
    ends, j = [], len(lengths)
    for start in reversed(before):
        ends.append(j - 1)
        j = start[j]
    return [(int(lengths[e]), int(np.max(targets[: e + 1]))) for e in reversed(ends)]


def _rows(settings: BatchConfig, source_length: int, target_length: int) -> int:
    if settings.tokens is None:
        return settings.size
    rows = settings.tokens // (source_length + target_length) // settings.multiple * settings.multiple
    if rows == 0:
        needed = settings.multiple * (source_length + target_length)
        raise ValueError(
            f"batch.tokens {settings.tokens} is too small for batch.multiple {settings.multiple} examples of"
            f" {source_length} + {target_length} tokens; give at least {needed}, or a smaller multiple or lengths"
        )
    return rows
