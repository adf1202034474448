"""Decoder inputs made of labels, also of packed rows, and the check of ids."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seq2seq_jax.config import EncoderDecoderConfig
from seq2seq_jax.models.losses import IGNORED


def pack_begins(pack_ids: jax.Array) -> jax.Array:
    """Where in [batch, length] a new pack begins."""
    first = jnp.ones_like(pack_ids[:, :1], bool)
    return jnp.concatenate([first, pack_ids[:, 1:] != pack_ids[:, :-1]], axis=1)


def decoder_inputs_of_labels(
    config: EncoderDecoderConfig, labels: jax.Array, pack_ids: jax.Array | None = None
) -> jax.Array:
    """Decoder inputs of `labels` [batch, length] as the pair's config says; pack_ids: see `shift_tokens_right`."""
    if config.wrap_labels:
        return wrap_tokens_right(labels, config.pad_token_id, pack_ids)
    return shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id, pack_ids)


def shift_tokens_right(
    labels: jax.Array,
    pad_token_id: int | None,
    decoder_start_token_id: int | None,
    pack_ids: jax.Array | None = None,
) -> jax.Array:
    """Decoder inputs of `labels` [batch, length]: the start token, then the labels but the last, -100 read as pad.

    Args:
      pack_ids: int [batch, length], where rows hold several examples: each begins with the start token.

    Raises:
      ValueError: if either id is None (transformers.models.encoder_decoder.shift_tokens_right).
    """
    for name, value in (("decoder_start_token_id", decoder_start_token_id), ("pad_token_id", pad_token_id)):
        if value is None:
            raise ValueError(
                f"{name} is not known, and labels cannot be shifted without it; give {name}=... where the pair is made"
            )
    labels = jnp.asarray(labels)
    start = jnp.full_like(labels[:, :1], decoder_start_token_id)
    shifted = jnp.concatenate([start, labels[:, :-1]], axis=1)
    if pack_ids is not None:
        shifted = jnp.where(pack_begins(pack_ids), decoder_start_token_id, shifted)
    return jnp.where(shifted == IGNORED, pad_token_id, shifted)


def wrap_tokens_right(labels: jax.Array, pad_token_id: int, pack_ids: jax.Array | None = None) -> jax.Array:
    """mBART's and PLBart's decoder inputs of `labels` [batch, length]: the last token, a language's, then all before it
    (transformers.models.mbart.shift_tokens_right); with pack_ids [batch, length] so for each pack.
    """
    labels = jnp.asarray(labels)
    labels = jnp.where(labels == IGNORED, pad_token_id, labels)
    if pack_ids is None:
        last = jnp.sum(labels != pad_token_id, axis=1, keepdims=True) - 1
        return jnp.concatenate([jnp.take_along_axis(labels, last, axis=1), labels[:, :-1]], axis=1)
    begins, length = pack_begins(pack_ids), labels.shape[1]
    # The column of the last token of each column's pack, [batch, length].
    ends = jnp.where(jnp.roll(begins, -1, axis=1), jnp.arange(length), length)
    last = jnp.take_along_axis(labels, jax.lax.cummin(ends, axis=1, reverse=True), axis=1)
    return jnp.where(begins, last, jnp.roll(labels, 1, axis=1))


def shape_of(name: str, array: Any) -> tuple[int, ...]:
    """The shape of an argument, given as an array or as nested lists.

    Raises:
      ValueError: for lists of different lengths, and for texts.
    """
    if isinstance(array, (list, tuple)):
        lengths = {len(row) if isinstance(row, (list, tuple)) or np.ndim(row) else 1 for row in array}
        if len(lengths) > 1:
            raise ValueError(
                f"{name} is a ragged list, with rows of {min(lengths)} to {max(lengths)}; pad it: tokenizer(texts)"
            )
        array = np.asarray(array)
    if isinstance(array, np.ndarray) and array.dtype.kind not in "biufV":  # V: bfloat16
        raise ValueError(f"{name} holds {array.ravel().tolist()[0]!r}; give numbers")
    return np.shape(array)


TOKENIZER = "use the tokenizer that belongs to the checkpoint, or resize_token_embeddings"


def check_ids(
    name: str,
    ids: Any,
    size: int,
    allowed: tuple[int, ...] = (),
    *,
    table: str | None = None,
    remedy: str = TOKENIZER,
) -> None:
    """Ids that are no whole numbers are an error; so is one outside 0 to size - 1 that is not `allowed`, where `ids`
    are known (not while tracing).

    Args:
      table: what has `size` rows, for the message; None: the vocabulary. remedy: what the message says to do.
    """
    if ids is None:
        return
    shape_of(name, ids)
    ids = ids if isinstance(ids, jax.core.Tracer) else np.asarray(ids)
    if ids.size and not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"{name} has dtype {ids.dtype}; give whole numbers")
    if isinstance(ids, jax.core.Tracer):
        return
    bad = ids[((ids < 0) | (ids >= size)) & ~np.isin(ids, allowed)]
    if bad.size:
        table = f"the vocabulary of {size}" if table is None else table
        raise ValueError(f"{name} holds the id {bad[0]}, outside {table}; {remedy}")
