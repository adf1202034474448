"""The loss of a pair on examples, targets given."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from seq2seq_jax.config import BatchConfig, LossConfig
from seq2seq_jax.data.encoding import EncodedPairs
from seq2seq_jax.data.pipeline import batches
from seq2seq_jax.data.plan import BatchPlan
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.models.losses import IGNORED
from seq2seq_jax.parallel.mesh import batch_parts, local_rows, shard_batch
from seq2seq_jax.parallel.progress import progress_bar

BUCKETS = 2


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sums(
    model: EncoderDecoder, loss_config: LossConfig, params: Any, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    losses = model.apply({"params": params}, **batch, loss_config=loss_config, method="token_losses")
    return jnp.sum(losses), jnp.sum(batch["labels"] != IGNORED)


def corpus_loss(
    model: EncoderDecoder,
    params: Any,
    encoded: EncodedPairs,
    mesh: Mesh,
    *,
    batch_size: int,
    source_pad_id: int,
    loss_config: LossConfig = LossConfig(),
    progress: bool = False,
) -> float:
    """The mean cross-entropy of all target tokens, in nats, without label smoothing and dropout.

    Args:
      loss_config: how many logits exist at a time; its smoothing and z-loss take no part.
    """
    rows = math.ceil(batch_size / batch_parts(mesh)) * batch_parts(mesh)
    settings = BatchConfig(size=rows, buckets=BUCKETS)
    plan = BatchPlan(encoded.source_lengths, encoded.target_lengths, settings, seed=0)
    here = functools.partial(local_rows, mesh)
    planned = batches(encoded, plan, 0, plan.batches_per_epoch, source_pad_id=source_pad_id, local_rows=here)
    loss_config = dataclasses.replace(loss_config, label_smoothing=0.0, z_loss=0.0)
    sums = []
    for batch in progress_bar(planned, "loss", plan.batches_per_epoch, unit="batch", disable=not progress, leave=False):
        sums.append(_sums(model, loss_config, params, shard_batch(batch.arrays, mesh, rows=batch.bucket.rows)))
    total, count = np.sum(np.asarray(jax.device_get(sums), np.float64), axis=0)
    return float(total / count)
