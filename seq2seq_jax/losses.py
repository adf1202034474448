"""Cross-entropy over target tokens: one home for what the model and the training step report."""

from __future__ import annotations

import jax
import jax.numpy as jnp

IGNORED = -100


def token_losses(
    logits: jax.Array,
    labels: jax.Array,
    *,
    vocab_size: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> jax.Array:
    """Loss of each token in nats, float32, 0 where the label is -100.

    Args:
      logits: [..., rows]. labels: int [...], ids or -100.
      vocab_size: how many rows are true; the others (padding of the vocabulary) take no part. None: all.
      label_smoothing: this much of the target is spread evenly over the true vocabulary (torch's
        CrossEntropyLoss(label_smoothing=...)).
      z_loss: factor on the squared log of the normaliser (PaLM, section 5).
    """
    logits = logits.astype(jnp.float32)
    rows = logits.shape[-1]
    true = None if vocab_size is None or vocab_size == rows else jnp.arange(rows) < vocab_size
    if true is not None:
        logits = jnp.where(true, logits, -jnp.inf)
    counted = labels != IGNORED
    log_normaliser = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, jnp.where(counted, labels, 0)[..., None], axis=-1)[..., 0]
    loss = log_normaliser - chosen
    if label_smoothing:
        mean = (jnp.sum(logits, -1) if true is None else jnp.sum(jnp.where(true, logits, 0.0), -1)) / (
            vocab_size or rows
        )
        loss = (1.0 - label_smoothing) * loss + label_smoothing * (log_normaliser - mean)
    if z_loss:
        loss = loss + z_loss * jnp.square(log_normaliser)
    return jnp.where(counted, loss, 0.0)


def cross_entropy(logits: jax.Array, labels: jax.Array, **options) -> jax.Array:
    """Mean of `token_losses` over labels that are not -100 (torch.nn.CrossEntropyLoss); NaN if there is none."""
    return jnp.sum(token_losses(logits, labels, **options)) / jnp.sum(labels != IGNORED)
