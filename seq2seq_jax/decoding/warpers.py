"""Warpers of next-token scores for sampling, in the order in which transformers' generate applies them.

All take scores float32 [batch, n, rows] and a View, and ban what is not to be drawn. Scores equal to the last kept one
are kept. `keep` tokens stay in any case.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from seq2seq_jax.decoding.logits import View, highest


@struct.dataclass
class Temperature:
    """Scores divided by a temperature (torch's TemperatureLogitsWarper).

    Attributes:
      temperature: float32 scalar.
    """

    temperature: jax.Array

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        return scores / self.temperature


@struct.dataclass
class TopH:
    """The best tokens whose terms of the entropy sum up to at most `top_h` of it, among the 100 best (torch's
    TopHLogitsWarper).

    Attributes:
      top_h: float32 scalar.
    """

    top_h: jax.Array

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        ordered = _ordered(scores, 100)
        log_probs = jax.nn.log_softmax(ordered, axis=-1)
        terms = _entropy_terms(log_probs)
        budget = self.top_h * jnp.sum(terms, axis=-1, keepdims=True)
        kept = (jnp.cumsum(terms, axis=-1) <= budget) & (jnp.exp(log_probs) > 0)
        return _from(scores, jnp.min(jnp.where(kept, ordered, ordered[..., :1]), axis=-1, keepdims=True))


@struct.dataclass
class TopKTopP:
    """The `top_k` best tokens, then of those the fewest that hold `top_p` of the probability, by one ordering (torch's
    TopKLogitsWarper, TopPLogitsWarper).

    Attributes:
      top_k: int32 scalar, top_p: float32 scalar; None is off.
      keep: int32 scalar. width: how many of the best are ordered, at least top_k; None: all.
    """

    top_k: jax.Array | None
    top_p: jax.Array | None
    keep: jax.Array
    width: int | None = struct.field(pytree_node=False, default=None)

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        ordered, kept = _ordered(scores, self.width), None
        places = jnp.arange(ordered.shape[-1])
        if self.top_k is not None:
            last = jnp.clip(jnp.maximum(self.top_k, self.keep), 1, len(places)) - 1
            kept = ordered >= jax.lax.dynamic_index_in_dim(ordered, last, axis=-1)
        if self.top_p is not None:
            probs = jax.nn.softmax(ordered if kept is None else jnp.where(kept, ordered, -jnp.inf), axis=-1)
            nucleus = (jnp.cumsum(probs, axis=-1) - probs < self.top_p) | (places < self.keep)
            kept = nucleus if kept is None else kept & nucleus
        return _from(scores, jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True))


@struct.dataclass
class MinP:
    """Tokens at least `min_p` times as probable as the best (torch's MinPLogitsWarper).

    Attributes:
      min_p: float32 scalar.
      keep: how many tokens stay in any case.
    """

    min_p: jax.Array
    keep: int = struct.field(pytree_node=False, default=1)

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        threshold = jnp.max(scores, axis=-1, keepdims=True) + jnp.log(self.min_p)
        return _from(scores, jnp.minimum(threshold, _best(scores, self.keep)))


@struct.dataclass
class TypicalP:
    """The tokens whose information is nearest to the entropy, the fewest that hold `mass` of the probability (Meister
    et al. 2022; torch's TypicalLogitsWarper).

    Attributes:
      mass: float32 scalar. keep: int32 scalar.
    """

    mass: jax.Array
    keep: jax.Array

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        log_probs = jax.nn.log_softmax(scores, axis=-1)
        entropy = jnp.sum(_entropy_terms(log_probs), axis=-1, keepdims=True)
        distance = jnp.abs(-log_probs - entropy)
        ordered, probs = jax.lax.sort((distance, jnp.exp(log_probs)), num_keys=1)
        before = jnp.sum(jnp.cumsum(probs, axis=-1) < self.mass, axis=-1, keepdims=True)
        last = jnp.clip(jnp.maximum(before, self.keep - 1), 0, scores.shape[-1] - 1)
        return jnp.where(distance > jnp.take_along_axis(ordered, last, axis=-1), -jnp.inf, scores)


@struct.dataclass
class EpsilonCutoff:
    """Tokens of at least a probability (Hewitt et al. 2022; torch's EpsilonLogitsWarper).

    Attributes:
      epsilon: float32 scalar. keep: how many tokens stay in any case.
    """

    epsilon: jax.Array
    keep: int = struct.field(pytree_node=False, default=1)

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        rare = jax.nn.softmax(scores, axis=-1) < self.epsilon
        return jnp.where(rare & (scores < _best(scores, self.keep)), -jnp.inf, scores)


@struct.dataclass
class EtaCutoff:
    """Tokens of at least a probability, which is lower where the entropy is high (Hewitt et al. 2022; torch's
    EtaLogitsWarper).

    Attributes:
      epsilon: float32 scalar. keep: how many tokens stay in any case.
    """

    epsilon: jax.Array
    keep: int = struct.field(pytree_node=False, default=1)

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        log_probs = jax.nn.log_softmax(scores, axis=-1)
        entropy = jnp.sum(_entropy_terms(log_probs), axis=-1, keepdims=True)
        rare = jnp.exp(log_probs) < jnp.minimum(self.epsilon, jnp.sqrt(self.epsilon) * jnp.exp(-entropy))
        return jnp.where(rare & (scores < _best(scores, self.keep)), -jnp.inf, scores)


@struct.dataclass
class Renormalize:
    """Log-probabilities again (torch's LogitNormalization). Where everything is banned, it stays so."""

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        none = jnp.max(scores, axis=-1, keepdims=True) == -jnp.inf
        return jnp.where(none, scores, jax.nn.log_softmax(scores, axis=-1))


def _ordered(scores: jax.Array, width: int | None) -> jax.Array:
    """The `width` best scores, best first (None: all)."""
    if width is None or width >= scores.shape[-1]:
        return -jnp.sort(-scores, axis=-1)
    return highest(scores, width)[0]


def _best(scores: jax.Array, keep: int) -> jax.Array:
    """The `keep`-th best score [..., 1]."""
    if keep == 1:
        return jnp.max(scores, axis=-1, keepdims=True)
    return highest(scores, min(keep, scores.shape[-1]))[0][..., -1:]


def _entropy_terms(log_probs: jax.Array) -> jax.Array:
    """-p log p of each token."""
    return jnp.where(log_probs > -jnp.inf, -jnp.exp(log_probs) * log_probs, 0.0)


def _from(scores: jax.Array, threshold: jax.Array) -> jax.Array:
    """Scores below the threshold [..., 1] are banned."""
    return jnp.where(scores < threshold, -jnp.inf, scores)
