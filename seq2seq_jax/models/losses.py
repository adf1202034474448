"""Cross-entropy over target tokens: one home for what the model and the training step report."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seq2seq_jax.config import LossConfig
from seq2seq_jax.parallel.axes import constrain, current_mesh, fitting_spec, num_shards

IGNORED = -100


def token_losses(
    logits: jax.Array,
    labels: jax.Array,
    config: LossConfig = LossConfig(),
    *,
    vocab_size: int | None = None,
) -> jax.Array:
    """Loss of each token in nats, float32, 0 where the label is -100.

    Args:
      logits: [..., rows]. labels: int [...], ids or -100.
      config: of which the chunks mean nothing here, where all logits exist.
      vocab_size: how many rows are true; the others (padding of the vocabulary) take no part. None: all.
    """
    label_smoothing, z_loss = config.label_smoothing, config.z_loss
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


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    config: LossConfig = LossConfig(),
    *,
    vocab_size: int | None = None,
) -> jax.Array:
    """Mean of `token_losses` over labels that are not -100 (torch.nn.CrossEntropyLoss); NaN if there is none.

    Args:
      weights: of `label_weights`: the mean is sum(weight * loss) / sum(weight). None: all are 1.
    """
    losses = token_losses(logits, labels, config, vocab_size=vocab_size)
    if weights is None:
        return jnp.sum(losses) / jnp.sum(labels != IGNORED)
    return jnp.sum(losses * weights) / jnp.sum(weights)


def label_weights(weights: jax.Array | None, labels: jax.Array, pack_ids: jax.Array | None = None) -> jax.Array | None:
    """How much each label weighs in the loss, float32 [batch, target], 0 where it is -100; None for None: all alike.

    Args:
      weights: [batch, target], of tokens; [batch] or [batch, 1], of examples; with pack_ids also [batch, packs], of
        examples that share a row, where column i is pack i + 1's (packs that have none give NaN).
      labels, pack_ids: int [batch, target].

    Raises:
      ValueError: for another shape.
    """
    if weights is None:
        return None
    weights = jnp.asarray(weights, jnp.float32)
    given, (batch, target) = list(weights.shape), labels.shape
    if weights.ndim == 1:
        weights = weights[:, None]
    if weights.ndim != 2 or len(weights) != batch or (pack_ids is None and weights.shape[1] not in (1, target)):
        raise ValueError(
            f"loss_weights has shape {given}; give [{batch}, {target}], a weight for each label, or [{batch}], one for"
            f" each example{', or with decoder_pack_ids [batch, packs]' if pack_ids is None else ''}"
        )
    if pack_ids is not None and 1 < weights.shape[1] != target:
        weights = jnp.take_along_axis(weights, pack_ids - 1, axis=1, mode="fill", fill_value=jnp.nan)
    return jnp.where(labels != IGNORED, weights, 0.0)


class _Settings(NamedTuple):
    """What a tile needs beside its arrays; as in `chunked_token_losses`."""

    vocab_size: int
    label_smoothing: float
    z_loss: float
    softcap: float | None


def chunked_token_losses(
    states: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    config: LossConfig,
    *,
    vocab_size: int | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """`token_losses` of the logits `states @ kernel.T + bias`, of which one tile exists at a time.

    The backward pass computes each tile anew from the normalisers that the forward pass kept (Wijmans et al. 2024, "Cut
    your losses in large-vocabulary language models"). Products take the dtype of `states`; sums are float32.

    Args:
      states: [batch, ..., hidden]. kernel: [rows, hidden]. bias: [rows], or None. labels: int [batch, ...].
      config: its chunk is the tokens of a tile, over all devices; its vocab_chunk the rows of a tile, None where a mesh
        splits the vocabulary.
      vocab_size: see `token_losses`. softcap: logits are cap * tanh(logits / cap).

    Returns:
      float32 [batch, ...]; NaN where a label is outside the vocabulary.

    Raises:
      ValueError: for tiles of a vocabulary that the mesh splits.
    """
    chunk, vocab_chunk = config.chunk, config.vocab_chunk
    rows, hidden = kernel.shape
    # Each device cuts its own tokens: [chunks, parts, tokens], of which the mesh splits the parts.
    mesh = current_mesh()
    vocab_parts = 1 if mesh is None else num_shards(fitting_spec((rows,), ("vocab",), mesh)[0], mesh)
    if vocab_chunk is not None and vocab_parts > 1:
        raise ValueError(f"loss_vocab_chunk is {vocab_chunk}, and the mesh splits the vocabulary; leave it out")
    parts = 1 if mesh is None else num_shards(fitting_spec(labels.shape[:1], ("batch",), mesh)[0], mesh)
    tokens = labels.size // parts
    count = -(-tokens // max(1, chunk // parts))
    each = -(-tokens // count)

    def cut(x: jax.Array, fill: float, *width: int) -> jax.Array:
        x = constrain(x.reshape(parts, tokens, *width), ("batch", None, *(None for _ in width)))
        x = jnp.pad(x, ((0, 0), (0, count * each - tokens), *((0, 0) for _ in width)), constant_values=fill)
        return jnp.moveaxis(x.reshape(parts, count, each, *width), 1, 0)

    tiles = 1 if vocab_chunk is None else -(-rows // vocab_chunk)
    tile = -(-rows // tiles)

    def tiled(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, tiles * tile - rows), *((0, 0) for _ in x.shape[1:])))
        return x.reshape(tiles, tile, *x.shape[1:])

    settings = _Settings(vocab_size or rows, config.label_smoothing, config.z_loss, softcap)
    table = (tiled(kernel), None if bias is None else tiled(bias))
    losses = _tiled_losses(settings, cut(states, 0, hidden), *table, cut(labels, IGNORED))
    losses = jnp.moveaxis(losses, 0, 1).reshape(parts, count * each)[:, :tokens]
    return losses.reshape(labels.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled_losses(settings: _Settings, states, kernel, bias, labels) -> jax.Array:
    """float32 [chunks, parts, tokens].

    Args:
      states: [chunks, parts, tokens, hidden]. kernel: [tiles, rows, hidden]. bias: [tiles, rows], or None.
      labels: int [chunks, parts, tokens].
    """
    return _forward(settings, states, kernel, bias, labels)[0]


def _tiles(kernel: jax.Array, bias: jax.Array | None) -> tuple:
    """Number of the first row, kernel and bias of each tile."""
    # The kernel is gathered over fsdp once, not for each tile.
    return jnp.arange(kernel.shape[0]) * kernel.shape[1], constrain(kernel, (None, "vocab", None)), bias


def _logits(settings: _Settings, states: jax.Array, tile: tuple) -> tuple[jax.Array, jax.Array]:
    """Logits of a tile, float32 [parts, tokens, rows], the lowest float outside the vocabulary; the ids of its rows."""
    first, kernel, bias = tile
    logits = jnp.einsum("pth,vh->ptv", states, kernel, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    if settings.softcap is not None:
        logits = settings.softcap * jnp.tanh(logits / settings.softcap)
    ids = first + jnp.arange(kernel.shape[0])
    logits = jnp.where(ids < settings.vocab_size, logits, jnp.finfo(jnp.float32).min)
    return constrain(logits, ("batch", None, "vocab")), ids


def _forward(settings: _Settings, states, kernel, bias, labels) -> tuple[jax.Array, tuple]:
    tiles = _tiles(kernel, bias)

    def one_chunk(_, xs):
        states, labels = xs

        def add(sums, tile):
            top, total, chosen, logits_sum = sums
            logits, ids = _logits(settings, states, tile)
            higher = jnp.maximum(top, jnp.max(logits, -1))
            total = total * jnp.exp(top - higher) + jnp.sum(jnp.exp(logits - higher[..., None]), -1)
            chosen = chosen + jnp.sum(jnp.where(ids == labels[..., None], logits, 0.0), -1)
            if settings.label_smoothing:
                logits_sum = logits_sum + jnp.sum(jnp.where(ids < settings.vocab_size, logits, 0.0), -1)
            return (higher, total, chosen, logits_sum), None

        zeros = jnp.zeros(labels.shape, jnp.float32)
        start = (zeros + jnp.finfo(jnp.float32).min, zeros, zeros, zeros)
        (top, total, chosen, logits_sum), _ = jax.lax.scan(add, start, tiles)
        log_normaliser = top + jnp.log(total)
        smoothing = settings.label_smoothing
        loss = log_normaliser - (1.0 - smoothing) * chosen - smoothing * logits_sum / settings.vocab_size
        loss = loss + settings.z_loss * jnp.square(log_normaliser)
        loss = jnp.where((labels >= 0) & (labels < settings.vocab_size), loss, jnp.nan)
        return None, (jnp.where(labels == IGNORED, 0.0, loss), log_normaliser)

    _, (losses, log_normalisers) = jax.lax.scan(one_chunk, None, (states, labels))
    return losses, (states, kernel, bias, labels, log_normalisers)


def _backward(settings: _Settings, residuals: tuple, cotangents: jax.Array) -> tuple:
    states, kernel, bias, labels, log_normalisers = residuals
    cotangents = jnp.where(labels == IGNORED, 0.0, cotangents)
    parts, smoothing = states.shape[1], settings.label_smoothing

    def one_tile(d_states, tile):
        def one_chunk(sums, xs):
            states, labels, log_normaliser, cotangent = (x if x.ndim == 3 else x[..., None] for x in xs)
            logits, ids = _logits(settings, states, tile)
            d = jnp.exp(logits - log_normaliser) * (1.0 + 2.0 * settings.z_loss * log_normaliser)
            d = d - jnp.where(ids == labels, 1.0 - smoothing, 0.0)
            d = (d - smoothing / settings.vocab_size) * cotangent
            if settings.softcap is not None:
                d = d * (1.0 - jnp.square(logits / settings.softcap))
            d = jnp.where(ids < settings.vocab_size, d, 0.0)
            product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
            low = d.astype(states.dtype)
            # Summed for each part alone: over the devices once, not for each chunk.
            new = (product("ptv,pth->pvh", low, states), None if bias is None else jnp.sum(d, 1))
            return jax.tree.map(jnp.add, sums, new), product("ptv,vh->pth", low, tile[1])

        zeros = jnp.zeros((parts, *tile[1].shape), jnp.float32)
        zeros = constrain(zeros, ("batch", "vocab", None)), None if bias is None else zeros[..., 0]
        sums, d = jax.lax.scan(one_chunk, zeros, (states, labels, log_normalisers, cotangents))
        return d_states + d, jax.tree.map(lambda x: jnp.sum(x, 0), sums)

    zeros = jnp.zeros(states.shape, jnp.float32)
    d_states, sums = jax.lax.scan(one_tile, zeros, _tiles(kernel, bias))
    d_kernel, d_bias = jax.tree.map(lambda d, x: d.astype(x.dtype), sums, (kernel, bias))
    return d_states.astype(states.dtype), d_kernel, d_bias, None


_tiled_losses.defvjp(_forward, _backward)
