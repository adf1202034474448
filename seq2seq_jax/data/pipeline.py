"""Makes the plan's batches into arrays, and prefetches them with grain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import grain
import numpy as np

from seq2seq_jax.data.encoding import EncodedPairs
from seq2seq_jax.data.plan import BatchPlan, Bucket
from seq2seq_jax.models.losses import IGNORED

PREFETCHED = 4


def make_batch(
    encoded: EncodedPairs, bucket: Bucket, examples: np.ndarray, source_pad_id: int, *, packed: bool = False
) -> dict[str, np.ndarray]:
    """The arguments of `model.apply` for some examples.

    Args:
      examples: int [rows, most in a row], the examples of each row in order; -1: none.
      packed: whether rows hold several examples, so that pack ids are needed; else a row has one at most.

    Returns:
      int32 arrays: input_ids and attention_mask [rows, source_length], labels [rows, target_length] with padding -100.
      If packed, also encoder_pack_ids and decoder_pack_ids of the same shapes, which number a row's examples from 1
      and are 0 in padding. The model shifts the labels right within each example.
    """
    rows = len(examples)
    input_ids = np.full((rows, bucket.source_length), source_pad_id, np.int32)
    labels = np.full((rows, bucket.target_length), IGNORED, np.int32)
    sides = [(ids, np.zeros_like(ids), np.zeros(rows, int)) for ids in (input_ids, labels)]
    filled = examples >= 0
    for (row, place), *pair in zip(np.argwhere(filled), *encoded.select(examples[filled])):
        for tokens, (ids, pack_ids, ends) in zip(pair, sides):
            where = slice(ends[row], ends[row] + len(tokens))
            ids[row, where], pack_ids[row, where] = tokens, place + 1
            ends[row] += len(tokens)
    encoder_pack_ids, decoder_pack_ids = (pack_ids for _, pack_ids, _ in sides)
    mask = (encoder_pack_ids > 0).astype(np.int32)
    batch = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
    packs = {"encoder_pack_ids": encoder_pack_ids, "decoder_pack_ids": decoder_pack_ids}
    return {**batch, **packs} if packed else batch


class HostBatch(NamedTuple):
    """One batch as a process sees it.

    Attributes:
      bucket: shape of the batch over all processes. tokens: its source and target tokens, without padding.
      arrays: `make_batch` of the rows that this process needs.
    """

    bucket: Bucket
    tokens: int
    arrays: dict[str, np.ndarray]


class _Source:
    """The plan as a random-access data source of grain."""

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
    """Batches `start` to `stop - 1` of the plan, prefetched in a thread.

    Args:
      local_rows: from the number of rows in a batch to the rows that this process needs; None: all.
    """

    def make(planned: tuple[Bucket, np.ndarray]) -> HostBatch:
        bucket, examples = planned
        rows = slice(None) if local_rows is None else local_rows(bucket.rows)
        filled = examples[examples >= 0]
        tokens = int(encoded.source_lengths[filled].sum() + encoded.target_lengths[filled].sum())
        arrays = make_batch(encoded, bucket, examples[rows], source_pad_id, packed=plan.packed)
        return HostBatch(bucket, tokens, arrays)

    data = grain.MapDataset.source(_Source(plan, stop))[start:].map(make)
    return iter(data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCHED)))
