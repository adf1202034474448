"""Attention a few heads at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.models import attention, cpu


@pytest.mark.parametrize(
    "batch, heads, kv_heads, mask, bias",
    [
        (3, 12, 12, (3, 1, 1, 40), None),
        (2, 8, 2, (1, 1, 24, 40), (1, 8, 24, 40)),
        (2, 6, 3, (2, 1, 24, 40), (2, 6, 24, 40)),
        (2, 5, 5, None, None),
    ],
    ids=["padding", "shared keys, one bias", "bias of each row", "odd heads"],
)
def test_few_heads_at_a_time_are_all_heads(monkeypatch, batch, heads, kv_heads, mask, bias):
    draw = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)
    q, k, v = normal(batch, heads, 24, 8), normal(batch, kv_heads, 40, 8), normal(batch, kv_heads, 40, 8)
    mask = None if mask is None else jnp.asarray(draw.random(mask) > 0.3)
    bias = None if bias is None else normal(*bias)
    expected, _ = attention.attend(q, k, v, mask, 0.3, bias=bias)
    monkeypatch.setattr(cpu, "CACHED_SCORES", 4 * 4 * 24 * 40)  # four heads, of which the divisors remain
    lowered = jax.jit(lambda q: attention.attend(q, k, v, mask, 0.3, bias=bias, return_weights=False)[0]).lower(q)
    assert "while" in lowered.as_text()
    np.testing.assert_allclose(lowered.compile()(q), expected, rtol=1e-5, atol=1e-6)


def test_keys_in_tiles_are_keys(monkeypatch):
    monkeypatch.setattr(cpu, "KEY_TILE", 8)
    draw = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)
    q, k, v = normal(2, 6, 5, 4), normal(2, 3, 24, 4), normal(2, 3, 24, 4)
    mask = jnp.asarray(draw.random((2, 1, 5, 24)) > 0.3)
    tiles = cpu.tile_keys(k)
    assert tiles.shape == (2, 3, 3, 4, 8) and cpu.tile_keys(k[:, :, :23]).shape == (2, 3, 4, 23)
    expected = attention.attend(q, k, v, mask, 0.3)
    for found, asked in zip(attention.attend(q, tiles, v, mask, 0.3, cached=True), expected):
        np.testing.assert_allclose(found, asked, rtol=1e-5, atol=1e-6)


def test_weights_are_of_all_heads(monkeypatch):
    monkeypatch.setattr(cpu, "CACHED_SCORES", 1)
    q = jnp.ones((2, 3, 4, 8))
    assert attention.attend(q, q, q, None, 1.0)[1].shape == (2, 3, 4, 4)
    assert attention.attend(q, q, q, None, 1.0, return_weights=False)[1] is None
