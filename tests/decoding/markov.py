"""Random Markov models as step functions: small enough to search by hand."""

import jax.numpy as jnp
import numpy as np
from flax import struct

from seq2seq_jax.decoding.decode_loop import SearchParams, Source, decode_until, prefill
from seq2seq_jax.decoding.processors import MinLength
from seq2seq_jax.models.encoder_decoder import DecodeStep

VOCAB, START, PAD, EOS = 6, 1, 0, 2
CAPACITY = 8


@struct.dataclass
class NoCache:
    """A Markov model remembers nothing but how far it is."""

    index: int = 0
    length: int = struct.field(pytree_node=False, default=CAPACITY)

    def after_prompt(self):
        return self

    def select(self, parents):
        return self


def random_table(seed, sharpness=2.0, vocab=VOCAB):
    """Log-probabilities of the next token, [position, last token, next token]."""
    logits = np.random.default_rng(seed).standard_normal((CAPACITY, vocab, vocab)) * sharpness
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


def markov(table, states=None, attention=None):
    """A step function. Without the position two paths of the same transitions in another order would tie.

    Args:
      states: [position, token, hidden] and attention: [position, token, source], where they are asked for.
    """

    def step(tokens, cache):
        at = cache.index + jnp.arange(tokens.shape[2])
        pick = lambda array: jnp.asarray(array)[at, tokens]
        nothing = jnp.zeros((*tokens.shape, 1))
        out = DecodeStep(
            logits=pick(table),
            states=nothing if states is None else pick(states),
            attention=None if attention is None else pick(attention),
        )
        return out, cache.replace(index=cache.index + tokens.shape[2])

    return step


def search_params(max_length, eos=(EOS,), min_length=None, **more):
    penalties = {name: np.float32(more.pop(name)) for name in list(more) if name.endswith(("_penalty", "_alpha"))}
    if min_length is not None:
        more["processors"] = (MinLength(np.int32(min_length), np.array(eos, np.int32)),)
    if "gnmt_length_penalty" not in penalties:
        penalties = {"length_penalty": np.float32(1.0), **penalties}
    return SearchParams(
        max_length=np.int32(max_length),
        prompt_length=np.int32(1),
        pad_id=np.int32(PAD),
        eos_ids=np.array(eos, np.int32),
        penalties=penalties,
        **more,
    )


def source(ids=((3, 4, 5),)):
    ids = np.array(ids, np.int32)
    return Source(ids, np.ones(ids.shape, bool), np.arange(len(ids), dtype=np.int32))


def prompt(rows=1):
    return jnp.full((rows, 1), START, jnp.int32)


def run_search(strategy, step, cache, source, prompt, capacity, search_params):
    """The strategy's results, from one prefill and one run of the loop."""
    carry = prefill(strategy, step, cache, source, prompt, capacity, search_params)
    carry = decode_until(strategy, step, carry, search_params, jnp.int32(capacity), jnp.int32(0))
    return strategy.results(carry.state)
