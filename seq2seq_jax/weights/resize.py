"""Another vocabulary: the token table, the head and its bias with rows added or removed."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from seq2seq_jax.models import ties
from seq2seq_jax.weights.pretrained import Pretrained
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
    config = pretrained.config
    shared = any(a.target.startswith("decoder/embeddings") for a in ties.aliases(config))
    roles = ("encoder", "decoder") if shared else (SIDES[side],)
    new = dataclasses.replace(
        config, **{r: dataclasses.replace(getattr(config, r), vocab_size=n, padded_vocab_size=n) for r in roles}
    )
    flat, report = flatten_dict(pretrained.params, sep="/"), Report(list(pretrained.report.entries), [])
    report.notes.extend(pretrained.report.notes)
    for role in roles:
        old = getattr(config, role).vocab_size
        for leaf in (ties.EMBEDDING, "head/kernel", "head/bias"):
            if (path := f"{role}/{leaf}") in flat:
                flat[path] = _resized(flat[path][:old], n, zero=leaf.endswith("bias"))
                report.add(role, path, "resized", f"vocabulary, {old} to {n}")
    model = pretrained.model.clone(config=new)
    return pretrained.replace(model=model, params=unflatten_dict(flat, sep="/"), report=report)


def _resized(table: Any, rows: int, zero: bool) -> Any:
    extra = max(0, rows - table.shape[0])
    mean = jnp.mean(table.astype(jnp.float32), axis=0, keepdims=True).astype(table.dtype)
    fill = jnp.zeros_like(mean) if zero else mean
    return jnp.concatenate([table[:rows], jnp.broadcast_to(fill, (extra, *table.shape[1:]))], axis=0)
