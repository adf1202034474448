"""Assigns examples to batches by a pure function, so that any restart and any number of hosts sees the same batches."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from seq2seq_jax.config import LENGTH_MULTIPLE, BatchConfig, check
from seq2seq_jax.data.packing import Exchange, pack

# In place of an epoch in the generator's key, for the order in which examples are packed: it is that of all epochs.
NO_EPOCH = 2**64 - 1


@dataclass(frozen=True)
class Bucket:
    """A shape of batches: the number of rows, and the lengths in tokens that source and target are padded to."""

    rows: int
    source_length: int
    target_length: int


class BatchPlan:
    """Batch t of a run, for any t from 0: a function of the lengths, the settings, the seed and t alone.

    Each epoch holds every example once, in a new order. Examples that do not fill a batch of their bucket move to the
    next longer bucket; the last batch is filled up with empty rows, which have no weight.

    With packing, the lengths that share a row are chosen once, and all epochs have the same number of rows; so the
    epoch of batch t is known without packing the epochs before it. In each epoch, examples of equal lengths are
    exchanged, and the rows come in a new order.

    Attributes:
      buckets: shapes, shortest first. batches_per_epoch: the same in each epoch. packed: whether rows hold several
        examples. longest: tokens of the longest source and of the longest target. tokens: source tokens and target
        tokens of all examples.

    Raises:
      ValueError: for a batch or a row that is too small for the longest example.
    """

    def __init__(self, source_lengths: np.ndarray, target_lengths: np.ndarray, settings: BatchConfig, *, seed: int):
        self._seed = seed
        lengths = source_lengths, target_lengths
        self.packed = settings.packing
        self.longest = tuple(max(1, int(side.max())) for side in lengths)
        self.tokens = tuple(int(side.sum()) for side in lengths)
        padded = [_padded(np.maximum(side, 1), settings.length_multiple) for side in lengths]
        shapes = [_pack_shape(settings, self.longest)] if self.packed else bucket_shapes(*padded, settings.buckets)
        self.buckets = tuple(Bucket(_rows(settings, *shape), *shape) for shape in shapes)
        if self.packed:
            order = self._generator(NO_EPOCH).permutation(len(source_lengths))
            rows = pack(*lengths, *shapes[0], order)
            self._exchange = Exchange(*lengths)
            self._bucket_of = np.zeros(len(rows), int)
        else:
            rows = np.arange(len(source_lengths))[:, None]
            self._bucket_of = np.searchsorted([source for source, _ in shapes], padded[0])
        self._rows = np.concatenate([rows, np.full_like(rows[:1], -1)])  # an empty row last, so that index -1 is empty
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)
        self.batches_per_epoch = len(self._epoch(0))

    def __getitem__(self, t: int) -> tuple[Bucket, np.ndarray]:
        """The shape of batch t, and its examples, int [rows, most in a row]; -1 where there is none."""
        epoch, row = divmod(t, self.batches_per_epoch)
        return self._epoch(epoch)[row]

    @property
    def padded_tokens(self) -> tuple[int, int]:
        """Source and target tokens of an epoch's batches, padding included."""
        shapes = [(b.rows * b.source_length, b.rows * b.target_length) for b, _ in self._epoch(0)]
        return tuple(map(sum, zip(*shapes)))

    def _generator(self, epoch: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=np.array([self._seed, epoch], np.uint64)))

    def _make_epoch(self, epoch: int) -> list[tuple[Bucket, np.ndarray]]:
        generator = self._generator(epoch)
        order = generator.permutation(len(self._bucket_of))
        rows = self._exchange(self._rows, generator) if self.packed else self._rows
        batches, left = [], order[:0]
        for number, bucket in enumerate(self.buckets):
            members = np.concatenate([left, order[self._bucket_of[order] == number]])
            full = len(members) // bucket.rows * bucket.rows
            batches += [(bucket, rows[chosen]) for chosen in members[:full].reshape(-1, bucket.rows)]
            left = members[full:]
        if len(left):
            last = self.buckets[-1]
            batches.append((last, rows[np.concatenate([left, np.full(last.rows - len(left), -1)])]))
        return [batches[i] for i in generator.permutation(len(batches))]


def _padded(lengths: np.ndarray, multiple: int | None) -> np.ndarray:
    """Lengths rounded up to multiples of `multiple`; None: of LENGTH_MULTIPLE, but none above the longest length, since
    a model may have no more positions."""
    return np.minimum(_step_up(lengths, None), lengths.max()) if multiple is None else _step_up(lengths, multiple)


def _step_up(length, multiple: int | None):
    multiple = LENGTH_MULTIPLE if multiple is None else multiple
    return -(-length // multiple) * multiple


def bucket_shapes(source_lengths: np.ndarray, target_lengths: np.ndarray, count: int) -> list[tuple[int, int]]:
    """The `count` shapes (source, target), both increasing, that hold all examples with the least padding.

    An example goes into the shortest bucket that its source fits in; a bucket's target length is that of the longest
    target in it and in all shorter buckets. Computed by dynamic programming over the distinct source lengths.
    """
    lengths, inverse = np.unique(source_lengths, return_inverse=True)
    targets = np.zeros(len(lengths), int)
    np.maximum.at(targets, inverse, target_lengths)
    width = lengths + np.maximum.accumulate(targets)
    below = np.concatenate([[0], np.cumsum(np.bincount(inverse))])
    # cost[j]: padded tokens of the first j lengths with the buckets so far; before[k][j]: where bucket k then starts.
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


def _pack_shape(settings: BatchConfig, longest: tuple[int, int]) -> tuple[int, int]:
    """Source and target tokens of a row of packed examples. Positions restart with each example, so a row may be longer
    than the model's positions."""
    given = settings.pack_source_length, settings.pack_target_length
    for side, length, most in zip(("source", "target"), given, longest):
        check(
            length is None or length >= most,
            f"batch.pack_{side}_length is {length} and the longest {side} has {most} tokens; give at least {most}, or a"
            f" lower data.max_{side}_length",
        )
    up = lambda most: _step_up(most, settings.length_multiple)
    return tuple(up(most) if length is None else length for length, most in zip(given, longest))


def _rows(settings: BatchConfig, source_length: int, target_length: int) -> int:
    if settings.tokens is None:
        return settings.size
    rows = settings.tokens // (source_length + target_length) // settings.multiple * settings.multiple
    if rows == 0:
        needed = settings.multiple * (source_length + target_length)
        raise ValueError(
            f"batch.tokens {settings.tokens} is too small for batch.multiple {settings.multiple} rows of"
            f" {source_length} + {target_length} tokens; give at least {needed}, or a smaller multiple or lengths"
        )
    return rows
