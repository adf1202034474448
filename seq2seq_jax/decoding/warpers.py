"""Warpers of next-token scores for sampling, in the order in which transformers' generate applies them.

All take scores float32 [batch, n, rows] and a View, and ban what is not to be drawn. `keep` tokens stay in any case.
They keep as many tokens as torch's classes on a CPU, whose running sums are doubles that are rounded to float32. Where
a cut falls among equal scores, torch's unstable sort leaves open which stay; here those with the lowest ids do.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from seq2seq_jax.decoding.logits import View
from seq2seq_jax.models.cpu import top_k


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
        probs = jax.nn.softmax(ordered, axis=-1)
        terms = jnp.where(probs > 0, -probs * jnp.log(probs), 0.0)
        entropy = jnp.sum(_entropy_terms(jax.nn.log_softmax(ordered, axis=-1)), axis=-1, keepdims=True)
        within = (_running_sum(terms) <= self.top_h * entropy) & (probs > 0)
        count = jnp.maximum(jnp.sum(within, axis=-1, keepdims=True), 1)
        return jnp.where(_first(scores, ordered, count), scores, -jnp.inf)


@struct.dataclass
class TopKTopP:
    """The `top_k` best tokens, then of those the fewest that hold `top_p` of the probability, by one ordering (torch's
    TopKLogitsWarper, TopPLogitsWarper).

    Attributes:
      top_k: int32 scalar, top_p: float32 scalar; None is off.
      keep: int32 scalar. width: how many of the best are ordered, at least top_k; None: all.
      tail: float32 scalar, 1 - top_p as torch rounds it, from doubles; None: from the decimals of top_p.
    """

    top_k: jax.Array | None
    top_p: jax.Array | None
    keep: jax.Array
    width: int | None = struct.field(pytree_node=False, default=None)
    tail: jax.Array | None = None

    def __post_init__(self):
        if self.top_p is not None and self.tail is None:
            object.__setattr__(self, "tail", np.float32(1 - float(str(np.float32(self.top_p)))))

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        ordered, least = _ordered(scores, self.width), jnp.full((1, 1, 1), -jnp.inf)
        if self.top_k is not None:
            last = jnp.clip(jnp.maximum(self.top_k, self.keep), 1, ordered.shape[-1]) - 1
            least = jax.lax.dynamic_index_in_dim(ordered, last, axis=-1)
        if self.top_p is None:
            return _from(scores, least)
        nucleus = lambda ordered: jnp.where(_first(scores, ordered, self._count(ordered, least)), scores, -jnp.inf)
        if ordered.shape == scores.shape:
            return nucleus(ordered)
        # More scores than are ordered may equal the last of the top_k.
        many = jnp.sum((scores >= least) & (scores > -jnp.inf), axis=-1) > ordered.shape[-1]
        return jax.lax.cond(jnp.any(many), lambda: nucleus(_ordered(scores, None)), lambda: nucleus(ordered))

    def _count(self, ordered: jax.Array, least: jax.Array) -> jax.Array:
        """How many tokens hold `top_p` of those from the score `least` [..., 1] on: [..., 1]."""
        rising = jnp.flip(ordered, axis=-1)
        sums = _running_sum(jax.nn.softmax(jnp.where(rising >= least, rising, -jnp.inf), axis=-1))
        size = ordered.shape[-1]
        removed = (sums <= self.tail) & (jnp.arange(size) < size - self.keep)
        return size - jnp.sum(removed, axis=-1, keepdims=True)


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
        probs = jax.nn.softmax(scores, axis=-1)
        kept = probs >= self.min_p * jnp.max(probs, axis=-1, keepdims=True)
        if self.keep > 1:
            best = _ordered(scores, self.keep)
            kept |= _first(scores, best, jnp.full((1, 1, 1), best.shape[-1]))
        return jnp.where(kept, scores, -jnp.inf)


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
        ordered, logits = jax.lax.sort((distance, scores), num_keys=1)
        before = jnp.sum(_running_sum(jax.nn.softmax(logits, axis=-1)) < self.mass, axis=-1, keepdims=True)
        farthest = jnp.take_along_axis(ordered, jnp.minimum(before, scores.shape[-1] - 1), axis=-1)
        count = jnp.maximum(jnp.sum(ordered <= farthest, axis=-1, keepdims=True), self.keep)
        count = jnp.minimum(count, scores.shape[-1])
        return jnp.where(_first(-distance, -ordered, count), scores, -jnp.inf)


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
        rare = jax.nn.softmax(scores, axis=-1) < jnp.minimum(self.epsilon, jnp.sqrt(self.epsilon) * jnp.exp(-entropy))
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
    return top_k(scores, width)[0]


def _best(scores: jax.Array, keep: int) -> jax.Array:
    """The `keep`-th best score [..., 1]."""
    if keep == 1:
        return jnp.max(scores, axis=-1, keepdims=True)
    return top_k(scores, min(keep, scores.shape[-1]))[0][..., -1:]


def _first(scores: jax.Array, ordered: jax.Array, count: jax.Array) -> jax.Array:
    """bool, like scores [batch, n, rows]: the `count` [..., 1] best; `ordered` [..., width] holds them, best first."""
    last = jnp.take_along_axis(ordered, jnp.broadcast_to(count - 1, (*ordered.shape[:-1], 1)), axis=-1)
    level = scores == last
    spare = count - jnp.sum(ordered > last, axis=-1, keepdims=True)
    cut = jnp.any(jnp.sum(level, axis=-1, keepdims=True) > spare)
    return jax.lax.cond(
        cut, lambda: (scores > last) | (level & (jnp.cumsum(level, axis=-1) <= spare)), lambda: scores >= last
    )


def _running_sum(x: jax.Array) -> jax.Array:
    """Sums of x along its last axis up to each place, as of doubles that are rounded to float32 (torch.cumsum's on a
    CPU). Each is held as two float32 (Dekker 1971), so that they may be added in any order."""

    def added(a, b):
        (high_a, low_a), (high_b, low_b) = a, b
        high = high_a + high_b
        part = high - high_a
        low = low_a + low_b + ((high_a - (high - part)) + (high_b - part))
        whole = high + low
        return whole, low - (whole - high)

    return jax.lax.associative_scan(added, (x, jnp.zeros_like(x)), axis=-1)[0]


def _entropy_terms(log_probs: jax.Array) -> jax.Array:
    """-p log p of each token."""
    return jnp.where(log_probs > -jnp.inf, -jnp.exp(log_probs) * log_probs, 0.0)


def _from(scores: jax.Array, threshold: jax.Array) -> jax.Array:
    """Scores below the threshold [..., 1] are banned."""
    return jnp.where(scores < threshold, -jnp.inf, scores)
