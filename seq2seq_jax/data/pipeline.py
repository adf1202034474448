"""The plan's batches as arrays, read and made ahead by grain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import grain
import numpy as np

from seq2seq_jax.data.encoding import EncodedPairs
from seq2seq_jax.data.plan import BatchPlan, Bucket
from seq2seq_jax.losses import IGNORED

AHEAD = 4


def make_batch(
    encoded: EncodedPairs, bucket: Bucket, examples: np.ndarray, source_pad_id: int
) -> dict[str, np.ndarray]:
    """The arguments of `model.apply` for some examples; -1 stands for an empty row.

    Returns:
      int32 arrays: input_ids and attention_mask [examples, source_length], labels [examples, target_length], -100 in
      tails.
    """
    shape = (len(examples), bucket.source_length)
    input_ids, mask = np.full(shape, source_pad_id, np.int32), np.zeros(shape, np.int32)
    labels = np.full((len(examples), bucket.target_length), IGNORED, np.int32)
    filled = np.flatnonzero(examples >= 0)
    for row, source, target in zip(filled, *encoded.select(examples[filled])):
        input_ids[row, : len(source)] = source
        mask[row, : len(source)] = 1
        labels[row, : len(target)] = target
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


class HostBatch(NamedTuple):
    """rows: examples in the whole batch. tokens: source and target tokens in it, padding aside. arrays: `make_batch`
    of the rows that this process needs."""

    rows: int
    tokens: int
    arrays: dict[str, np.ndarray]


class _Source:
    """The plan as grain's random-access source."""

    def __init__(self, plan: BatchPlan, stop: int):
        self._plan, self._stop = plan, stop

    def __len__(self) -> int:
        return self._stop

    def __getitem__(self, t: int) -> tuple[Bucket, np.ndarray]:
        return self._plan[t]


def batches(
    encoded: EncodedPairs,
    plan: BatchPlan,
    start: int,
    stop: int,
    *,
    source_pad_id: int,
    local_rows: Callable[[int], np.ndarray] | None = None,
) -> Iterator[HostBatch]:
    """Batches `start` to `stop - 1` of the plan, made in a thread that stays a few ahead.

    Args:
      local_rows: from the number of rows in a batch, which of them this process needs; None: all.
    """

    def make(planned: tuple[Bucket, np.ndarray]) -> HostBatch:
        bucket, examples = planned
        rows = slice(None) if local_rows is None else local_rows(bucket.rows)
        filled = examples[examples >= 0]
        tokens = int(encoded.source_lengths[filled].sum() + encoded.target_lengths[filled].sum())
        return HostBatch(bucket.rows, tokens, make_batch(encoded, bucket, examples[rows], source_pad_id))

    data = grain.MapDataset.source(_Source(plan, stop))[start:].map(make)
    return iter(data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)))
