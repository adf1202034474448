"""Numbers as int8 with a scale, and products of them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from seq2seq_jax.models import cpu


def quantise(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """x as int8 and float32 scales, one for all of `axes`, that it is multiplied by."""
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=axes, keepdims=True) / 127.0
    return jnp.round(x / jnp.where(scale > 0, scale, 1.0)).astype(jnp.int8), jnp.squeeze(scale, axes)


def int8_product(kernel: jax.Array, scale: jax.Array, x: jax.Array, *, few_tokens: bool) -> jax.Array:
    """float32 [..., outputs] of kernel int8 [outputs, inputs], its scale [outputs], and tokens x [..., inputs], which
    are quantised one by one. Both are contracted over their last axis, the form in which XLA's CPU backend is fastest.

    Args:
      few_tokens: see `cpu.product_with_rows`.
    """
    tokens, scales = quantise(x, (x.ndim - 1,))  # [..., inputs], [...]
    product = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.int32)
    y = cpu.product_with_rows(product, tokens, kernel, most=None if few_tokens else 0)
    return y.astype(jnp.float32) * scale * scales[..., None]
