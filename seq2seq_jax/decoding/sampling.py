"""Greedy search and multinomial sampling, in one `lax.while_loop` (transformers' `_sample`)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from seq2seq_jax.decoding.logits import Numbers, Switches, process, warp
from seq2seq_jax.decoding.search import Step


@struct.dataclass
class Samples:
    """The state: n sequences a row, each on its own."""

    sequences: jax.Array  # int32 [batch, n, bucket]
    open: jax.Array  # bool [batch, n]: no end token yet
    length: jax.Array  # int32: tokens so far, prompt included


def sample(
    step: Step,
    cache: Any,
    prompt: jax.Array,
    bucket: int,
    switches: Switches,
    numbers: Numbers,
    rng: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Continues prompt [batch, p], num_return_sequences times a row.

    A row's random numbers follow from the key, its place in the batch and the position, not from the other rows.

    Returns:
      sequences int32 [batch, n, bucket] with pads behind the end, and the length at which the loop stopped.
    """
    batch, p = prompt.shape
    n = switches.num_return_sequences
    sequences = jnp.full((batch, n, bucket), numbers.pad_id, jnp.int32).at[:, :, :p].set(prompt[:, None, :])
    state = Samples(sequences, jnp.ones((batch, n), bool), jnp.int32(p))

    def choose(state: Samples, logits: jax.Array) -> Samples:
        scores = process(logits, state.sequences, state.length, switches, numbers)
        if switches.do_sample:

            def draw(row, index, row_scores):
                key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(rng, row), index), state.length)
                return jax.random.categorical(key, row_scores)

            over_samples = jax.vmap(draw, in_axes=(None, 0, 0))
            tokens = jax.vmap(over_samples, in_axes=(0, None, 0))(
                jnp.arange(batch), jnp.arange(n), warp(scores, switches, numbers)
            )
        else:
            tokens = jnp.argmax(scores, axis=-1)
        tokens = jnp.where(state.open, tokens, numbers.pad_id).astype(jnp.int32)
        still = state.open & ~jnp.any(tokens[..., None] == numbers.eos_ids, axis=-1)
        sequences = jax.lax.dynamic_update_index_in_dim(state.sequences, tokens[..., None], state.length, axis=2)
        return Samples(sequences, still, state.length + 1)

    logits, cache = step(prompt[:, None, :], cache)
    cache = cache.after_prompt()
    state = choose(state, jnp.broadcast_to(logits, (batch, n, logits.shape[-1])))

    def body(carry):
        state, cache = carry
        last = jax.lax.dynamic_index_in_dim(state.sequences, state.length - 1, axis=2)
        logits, cache = step(last, cache)
        return choose(state, logits), cache

    def go_on(carry):
        return jnp.any(carry[0].open) & (carry[0].length < numbers.max_length)

    state, _ = jax.lax.while_loop(go_on, body, (state, cache))
    return state.sequences, state.length
