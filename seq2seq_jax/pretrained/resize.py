"""Another vocabulary: the token table, the head and its bias with rows added or removed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding

from seq2seq_jax.models import ties
from seq2seq_jax.parallel.axes import LOGICAL_AXIS_RULES
from seq2seq_jax.pretrained.pair import Pretrained
from seq2seq_jax.weights.report import Report

SIDES = {"source": "encoder", "target": "decoder"}


def resize_token_embeddings(pretrained: Pretrained, n: int, *, side: str) -> Pretrained:
    """The pair with a vocabulary of `n` tokens on one side, or on both where they share the table.

    New rows are the mean of the old ones (what torch's mean_resizing draws around), a new head bias is 0. torch's
    EncoderDecoderModel cannot do this.

    Args:
      side: "source" (the encoder) or "target" (the decoder, its head included).

    Raises:
      ValueError: for an unknown side, n below 1, or special tokens that would be cut off.
    """
    if side not in SIDES:
        raise ValueError(f"side {side!r} is unknown; give 'source' or 'target'")
    if n < 1:
        raise ValueError(f"a vocabulary of {n} tokens is none; give 1 or more")
    pretrained.check_stored("has tables of one size")
    config = pretrained.config
    shared = any(a.target.startswith("decoder/embeddings") for a in ties.aliases(config))
    roles = ("encoder", "decoder") if shared else (SIDES[side],)
    rows = -(-n // _parts(pretrained.params)) * _parts(pretrained.params)
    new = dataclasses.replace(
        config, **{r: dataclasses.replace(getattr(config, r), vocab_size=n, padded_vocab_size=rows) for r in roles}
    )
    flat, report = flatten_dict(pretrained.params, sep="/"), Report(list(pretrained.report.entries), [])
    report.notes.extend(pretrained.report.notes)
    for role in roles:
        old = getattr(config, role).vocab_size
        for leaf in (ties.EMBEDDING, "head/kernel", "head/bias"):
            if (path := f"{role}/{leaf}") in flat:
                flat[path] = _resized(flat[path], old, n, rows, zero=leaf.endswith("bias"))
                report.add(role, path, "resized", f"vocabulary, {old} to {n}")
    model = pretrained.model.clone(config=new)
    return pretrained.replace(model=model, params=unflatten_dict(flat, sep="/"), report=report)


def _parts(params: Any) -> int:
    """Into how many parts the mesh of the parameters splits a vocabulary."""
    sharding = jax.tree.leaves(params)[0].sharding
    if not isinstance(sharding, NamedSharding):
        return 1
    return math.prod(sharding.mesh.shape.get(axis, 1) for axis in LOGICAL_AXIS_RULES["vocab"])


def _resized(table: jax.Array, old: int, n: int, rows: int, zero: bool) -> jax.Array:
    """The first `old` rows of a table cut or filled up to `n`, then padded with zeros to `rows`; placed as it was."""
    true = table[:old]
    mean = jnp.mean(true.astype(jnp.float32), axis=0, keepdims=True).astype(table.dtype)
    fill = jnp.zeros_like(mean) if zero else mean
    extra = jnp.broadcast_to(fill, (max(0, n - old), *table.shape[1:]))
    padding = jnp.zeros((rows - n, *table.shape[1:]), table.dtype)
    return jax.device_put(jnp.concatenate([true[:n], extra, padding], axis=0), table.sharding)
