"""Processors of next-token scores: pure functions, in the order of transformers' generate.

What is on is static (`Switches`); with what numbers is traced (`Numbers`), so that changing a number compiles nothing.
Beam search gives them log-probabilities, greedy search and sampling raw logits, as torch does.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct


@dataclass(frozen=True)
class Switches:
    """The static part of how to decode.

    Attributes:
      vocab_size: the rows of the scores that are true; the others are never chosen.
      early_stopping: False, True or "never".
      no_repeat_ngram_size: 0 is off.
      The rest says which processors are on.
    """

    vocab_size: int
    num_beams: int = 1
    num_return_sequences: int = 1
    do_sample: bool = False
    early_stopping: bool | str = False
    no_repeat_ngram_size: int = 0
    repetition_penalty: bool = False
    min_length: bool = False
    forced_bos: bool = False
    forced_eos: bool = False
    temperature: bool = False
    top_k: bool = False
    top_p: bool = False


@struct.dataclass
class Numbers:
    """The traced part: scalars, and eos_ids [n_eos], forced_eos [n]. Lengths count the start token and the prompt."""

    max_length: jax.Array
    min_length: jax.Array
    pad_id: jax.Array
    eos_ids: jax.Array
    forced_bos: jax.Array
    forced_eos: jax.Array
    length_penalty: jax.Array
    repetition_penalty: jax.Array
    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array


def set_rows(scores: jax.Array, ids: jax.Array, values: jax.Array | float) -> jax.Array:
    """scores [batch, beams, vocab] with scores[b, j, ids[b, j, i]] = values[b, j, i]; ids beyond vocab drop."""
    b, j = jnp.ogrid[: scores.shape[0], : scores.shape[1]]
    return scores.at[b[..., None], j[..., None], ids].set(values, mode="drop")


def penalise_repetition(scores: jax.Array, sequences: jax.Array, length: jax.Array, penalty: jax.Array) -> jax.Array:
    """Scores of tokens already in the sequence, times the penalty if negative, else divided by it (CTRL)."""
    seen = jnp.arange(sequences.shape[-1]) < length
    old = jnp.take_along_axis(scores, sequences, axis=-1)
    new = jnp.where(old < 0, old * penalty, old / penalty)
    return set_rows(scores, jnp.where(seen, sequences, scores.shape[-1]), new)


def ban_repeated_ngrams(scores: jax.Array, sequences: jax.Array, length: jax.Array, n: int) -> jax.Array:
    """Bans tokens that would complete an n-gram of the sequence: at most `length` ids a row, no loop over ids."""
    windows = sequences.shape[-1] - n + 1
    if windows <= 0:
        return scores
    start = jnp.arange(windows)
    match = jnp.broadcast_to(start + n - 1 < length, (*sequences.shape[:2], windows))
    last = jax.lax.dynamic_slice_in_dim(sequences, length - (n - 1), n - 1, axis=-1)
    for k in range(n - 1):
        match &= sequences[..., k : k + windows] == last[..., k : k + 1]
    banned = jnp.where(match, sequences[..., n - 1 :], scores.shape[-1])
    return set_rows(scores, banned, -jnp.inf)


def only(scores: jax.Array, ids: jax.Array, when: jax.Array) -> jax.Array:
    """Where `when`, everything but `ids` [n] is banned and they score 0."""
    forced = jnp.full(scores.shape[-1], -jnp.inf).at[ids].set(0.0, mode="drop")
    return jnp.where(when, forced, scores)


def process(
    scores: jax.Array, sequences: jax.Array, length: jax.Array, switches: Switches, numbers: Numbers
) -> jax.Array:
    """All processors that are on.

    Args:
      scores: float32 [batch, beams, rows]. sequences: int32 [batch, beams, bucket], of which `length` tokens count.
    """
    if scores.shape[-1] > switches.vocab_size:
        scores = jnp.where(jnp.arange(scores.shape[-1]) < switches.vocab_size, scores, -jnp.inf)
    if switches.repetition_penalty:
        scores = penalise_repetition(scores, sequences, length, numbers.repetition_penalty)
    if switches.no_repeat_ngram_size:
        scores = ban_repeated_ngrams(scores, sequences, length, switches.no_repeat_ngram_size)
    if switches.min_length:
        without_end = scores.at[..., numbers.eos_ids].set(-jnp.inf, mode="drop")
        scores = jnp.where(length < numbers.min_length, without_end, scores)
    if switches.forced_bos:
        scores = only(scores, numbers.forced_bos[None], length == 1)
    if switches.forced_eos:
        scores = only(scores, numbers.forced_eos, length == numbers.max_length - 1)
    return scores


def warp(scores: jax.Array, switches: Switches, numbers: Numbers) -> jax.Array:
    """Temperature, top-k and top-p on scores [..., rows], for sampling. Scores equal to the last kept one are kept."""
    if switches.temperature:
        scores = scores / numbers.temperature
    if not (switches.top_k or switches.top_p):
        return scores
    ordered = -jnp.sort(-scores, axis=-1)
    keep = jnp.ones(ordered.shape, bool)
    if switches.top_k:
        kth = jnp.clip(numbers.top_k, 1, scores.shape[-1]) - 1
        keep = ordered >= jax.lax.dynamic_index_in_dim(ordered, kth, axis=-1)
    if switches.top_p:
        probabilities = jax.nn.softmax(jnp.where(keep, ordered, -jnp.inf), axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        # The best token stays, however small top_p is.
        keep &= (before < numbers.top_p) | (jnp.arange(scores.shape[-1]) == 0)
    threshold = jnp.min(jnp.where(keep, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scores < threshold, -jnp.inf, scores)
