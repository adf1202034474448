"""Beam search: a pure function of a step function, a cache and a prompt, in one `lax.while_loop`.

Semantics of transformers 5's `_beam_search`, but that the tail behind a finished hypothesis is the pad token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from seq2seq_jax.decoding.logits import Numbers, Switches, process

# What torch adds to the score of a hypothesis that must not be chosen.
NEVER = -1.0e9
# tokens [batch, beams, count], cache -> logits [batch, beams, rows], cache
Step = Callable[[jax.Array, Any], tuple[jax.Array, Any]]


@struct.dataclass
class Beams:
    """The state of a search; `bucket` is the static length of the sequences."""

    sequences: jax.Array  # int32 [batch, beams, bucket]: running hypotheses
    scores: jax.Array  # float32 [batch, beams]: their summed log-probabilities
    parents: jax.Array  # int32 [batch, beams, bucket]: which beam wrote each token, -1 where none did
    done_sequences: jax.Array  # int32 [batch, beams, bucket]: the best finished hypotheses
    done_scores: jax.Array  # float32 [batch, beams]: theirs, length penalty applied
    done_parents: jax.Array  # int32 [batch, beams, bucket]
    done: jax.Array  # bool [batch, beams]: whether the place is taken
    improvable: jax.Array  # bool [batch]: whether a running hypothesis can still beat a finished one; stays False
    length: jax.Array  # int32: tokens so far, prompt included
    running: jax.Array  # bool: whether to go on


def take(array: jax.Array, beams: jax.Array) -> jax.Array:
    """array [batch, n, ...] at beams [batch, m]: [batch, m, ...]."""
    return jnp.take_along_axis(array, beams.reshape(*beams.shape, *(1,) * (array.ndim - 2)), axis=1)


def beam_search(
    step: Step, cache: Any, prompt: jax.Array, bucket: int, switches: Switches, numbers: Numbers
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Searches for the best continuations.

    Args:
      prompt: int32 [batch, p]. cache: for num_beams beams and `bucket` tokens, empty.
      bucket: static length of the results; numbers.max_length is at most this.

    Returns:
      sequences int32 [batch, num_beams, bucket], best first; their scores [batch, num_beams]; and for each generated
      token the beam that wrote it, int32 [batch, num_beams, bucket], -1 in tails (from position p on).
    """
    batch, p = prompt.shape
    beams = switches.num_beams
    empty = jnp.full((batch, beams, bucket), numbers.pad_id, jnp.int32)
    sequences = empty.at[:, :, :p].set(prompt[:, None, :])
    no_parents = jnp.full((batch, beams, bucket), -1, jnp.int32)
    state = Beams(
        sequences=sequences,
        # Only the first beam counts at first, or all beams would be the same.
        scores=jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, NEVER), (batch, beams)),
        parents=no_parents,
        done_sequences=sequences,
        done_scores=jnp.full((batch, beams), NEVER),
        done_parents=no_parents,
        done=jnp.zeros((batch, beams), bool),
        improvable=jnp.ones(batch, bool),
        length=jnp.int32(p),
        running=jnp.bool_(True),
    )

    # The prompt is read once, by one beam, from which all others descend.
    logits, cache = step(prompt[:, None, :], cache)
    logits = jnp.broadcast_to(logits, (batch, beams, logits.shape[-1]))
    state, _ = advance(state, logits, p, switches, numbers)
    cache = cache.after_prompt()

    def body(carry):
        state, cache = carry
        last = jax.lax.dynamic_index_in_dim(state.sequences, state.length - 1, axis=2)
        logits, cache = step(last, cache)
        state, chosen = advance(state, logits, p, switches, numbers)
        return state, cache.select(chosen)

    state, _ = jax.lax.while_loop(lambda carry: carry[0].running, body, (state, cache))
    return state.done_sequences, state.done_scores, state.done_parents


def candidates(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The `count` best of scores [batch, beams, rows] over beams and tokens: scores, beams, tokens [batch, count].

    Best of each beam first, then of those: the same as over all at once, ties in the same order.
    """
    batch, _, rows = scores.shape
    per_beam = min(count, rows)
    best, tokens = jax.lax.top_k(scores, per_beam)
    best, index = jax.lax.top_k(best.reshape(batch, -1), count)
    return best, index // per_beam, jnp.take_along_axis(tokens.reshape(batch, -1), index, axis=1)


def advance(
    state: Beams, logits: jax.Array, prompt_length: int, switches: Switches, numbers: Numbers
) -> tuple[Beams, jax.Array]:
    """One selection from logits [batch, beams, rows]; returns the parents of the running beams [batch, beams] too."""
    batch, beams, _ = logits.shape
    n_eos = numbers.eos_ids.shape[0]
    count = max(2, 1 + n_eos) * beams

    log_probs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    log_probs = process(log_probs, state.sequences, state.length, switches, numbers)
    scores, parents, tokens = candidates(log_probs + state.scores[:, :, None], count)

    def extended(arrays, value):
        return jax.lax.dynamic_update_index_in_dim(take(arrays, parents), value[:, :, None], state.length, axis=2)

    sequences = extended(state.sequences, tokens)
    flat = parents + jnp.arange(batch, dtype=jnp.int32)[:, None] * beams
    history = extended(state.parents, flat)
    ends = jnp.any(tokens[:, :, None] == numbers.eos_ids, axis=-1) | (state.length + 1 >= numbers.max_length)

    # The best candidates that do not end run on.
    going = scores + jnp.where(ends, NEVER, 0.0)
    next_scores, chosen = jax.lax.top_k(going, beams)

    # Of those that end, the first num_beams may finish.
    finishing = ends & (jnp.arange(count) < beams)
    generated = (state.length + 1 - prompt_length).astype(jnp.float32)
    final = scores / generated**numbers.length_penalty
    if switches.early_stopping is True:
        final += jnp.where(jnp.all(state.done, axis=1, keepdims=True), NEVER, 0.0)
    final += jnp.where(state.improvable[:, None], 0.0, NEVER)
    final += jnp.where(finishing, 0.0, NEVER)
    done_scores, kept = jax.lax.top_k(jnp.concatenate([state.done_scores, final], axis=1), beams)

    def merged(old, new):
        return take(jnp.concatenate([old, new], axis=1), kept)

    done = merged(state.done, finishing)
    length = state.length + 1
    improvable = state.improvable & can_improve(
        next_scores[:, 0], done_scores, done, length, prompt_length, switches, numbers
    )
    running = jnp.any(improvable) & ~jnp.all(ends)
    if switches.early_stopping is True:
        running &= ~jnp.all(done)
    new = Beams(
        sequences=take(sequences, chosen),
        scores=next_scores,
        parents=take(history, chosen),
        done_sequences=merged(state.done_sequences, sequences),
        done_scores=done_scores,
        done_parents=merged(state.done_parents, history),
        done=done,
        improvable=improvable,
        length=length,
        running=running,
    )
    return new, take(parents, chosen)


def can_improve(
    best_running: jax.Array,
    done_scores: jax.Array,
    done: jax.Array,
    length: jax.Array,
    prompt_length: int,
    switches: Switches,
    numbers: Numbers,
) -> jax.Array:
    """Whether the best running hypothesis [batch] may still beat the worst finished one (torch's heuristic)."""
    reach = length - prompt_length
    if switches.early_stopping == "never":
        reach = jnp.where(numbers.length_penalty > 0, numbers.max_length - prompt_length, reach)
    best = best_running[:, None] / reach.astype(jnp.float32) ** numbers.length_penalty
    worst = jnp.where(done, jnp.min(done_scores, axis=1, keepdims=True), NEVER)
    return jnp.any(best > worst, axis=1)
