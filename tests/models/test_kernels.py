"""Attention by kernels: splash attention in interpret mode against plain attention, and what no kernel can do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from seq2seq_jax.models import kernels
from seq2seq_jax.models.attention import attend
from seq2seq_jax.training.flops import step_flops
from seq2seq_jax.training.setup import check_backend
from seq2seq_jax.training.step import loss_and_grads
from tests.weights.checkpoints import BERT, GPT2, make_pair

LENGTH = 128
LONG = {"max_position_embeddings": LENGTH, "num_hidden_layers": 1, "vocab_size": 29}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(kernels, "INTERPRET", True)


@pytest.fixture(scope="module")
def pair():
    return make_pair({**BERT, **LONG}, {**GPT2, "n_layer": 1, "n_positions": LENGTH})


def packed_batch(length=LENGTH):
    """Two rows of two packs each, padded on the right, the second row without padding."""
    draw = np.random.default_rng(0)
    place, end = np.arange(length), np.array([[length - 20], [length]])
    packs = lambda cut: np.where(place < end, np.where(place < cut, 1, 2), 0).astype(np.int32)
    labels = np.where(place < end, draw.integers(3, 29, (2, length)), -100)
    return {
        "input_ids": draw.integers(3, 29, (2, length)),
        "attention_mask": (place < end).astype(np.int32),
        "labels": labels.astype(np.int32),
        "encoder_pack_ids": packs(50),
        "decoder_pack_ids": packs(30),
    }


@pytest.mark.parametrize("causal", [True, False])
def test_splash_equals_plain_attention(causal):
    """Values and gradients: packs, padding, an uneven window, a soft cap, two heads on one head of keys."""
    draw = np.random.default_rng(1)
    q, k, v = (jnp.asarray(draw.standard_normal((1, heads, LENGTH, 8)), jnp.float32) for heads in (2, 1, 1))
    place, window = np.arange(LENGTH), (40, 24)
    packs, real = (place >= 60)[None].astype(np.int32), (place < 110)[None]
    distance = place[:, None] - place
    mask = (packs[:, :, None] == packs[:, None]) & real[:, None] & (distance <= window[0])
    mask &= -distance <= window[1]
    mask = jnp.asarray(mask & (distance >= 0) if causal else mask)[:, None]
    sight = kernels.segment_ids(packs.shape, packs.shape, real, packs, packs)
    sees = np.asarray(mask.any(-1))[..., None]

    def plain(q, k, v):
        return attend(q, k, v, mask, 0.3, softcap=2.0)[0] * sees

    def splash(q, k, v):
        options = {"scale": 0.3, "causal": causal, "window": window, "softcap": 2.0}
        return kernels.fused_attention("splash", q, k, v, sight, **options) * sees

    def run(function):
        values, pull = jax.vjp(function, q, k, v)
        return values, *pull(jnp.cos(values))

    for found, expected in zip(jax.jit(lambda: run(splash))(), jax.jit(lambda: run(plain))(), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6 * float(np.abs(expected).max()))


def test_a_pair_by_splash_is_the_same_pair(pair):
    """The losses of packed and padded examples: masks, packs, causality and cross-attention come through."""
    batch = packed_batch()
    losses = [
        jax.jit(lambda name=name: pair.model.clone(attention_impl=name).apply(
            {"params": pair.params}, **batch, method="token_losses"))()
        for name in ("xla", "splash")
    ]  # fmt: skip
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)


def test_shapes_and_flops_are_those_of_plain_attention(pair):
    """A run asks for them with the kernel set, for lengths that no kernel takes."""
    model = pair.model.clone(attention_impl="splash")
    assert model.parameter_shapes() == pair.model.parameter_shapes()
    assert step_flops(model, None, 2, LENGTH, LENGTH) == step_flops(pair.model, None, 2, LENGTH, LENGTH)


def test_a_run_keeps_what_splash_gives(pair):
    """The backward pass of the three blocks of attention, two kernels each, does not run the forward ones again."""

    def kernels_in(jaxpr):
        used = [e for e in jaxpr.eqns if e.outvars]  # an equation without results is left out by the compiler
        inner = (kernels_in(j) for e in used for j in jaxprs_in_params(e.params))
        return sum(e.primitive.name == "pallas_call" for e in used) + sum(inner)

    def count(remat):
        model = pair.model.clone(attention_impl="splash", remat=remat)
        loss = lambda params: jnp.sum(model.apply({"params": params}, **packed_batch(), method="token_losses"))
        return kernels_in(jax.make_jaxpr(jax.grad(loss))(pair.params).jaxpr)

    assert [count(remat) for remat in ("none", "elementwise", "full")] == [9, 9, 12]


@pytest.mark.slow
def test_gradients_by_splash(pair):
    def run(name):
        model = pair.model.clone(attention_impl=name)
        return jax.jit(lambda params: loss_and_grads(model, params, packed_batch()))(pair.params)

    (loss, grads, _), (expected, others, _) = run("splash"), run("xla")
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(others))
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(others)):
        np.testing.assert_allclose(a, b, atol=1e-6 * largest)


def trace(pair, name, length=LENGTH, **options):
    """Builds a forward pass, computing nothing."""
    model = pair.model.clone(attention_impl=name, dtype=options.pop("dtype", jnp.float32))
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
    run = lambda ids: model.apply({"params": pair.params}, ids, labels=ids, **options)
    return jax.eval_shape(run, ids)


@pytest.mark.parametrize("name", ["cudnn", "splash"])
def test_what_no_kernel_can_do(pair, name):
    with pytest.raises(ValueError, match=f"'{name}' cannot do attention dropout: set attention_dropout .* or give"):
        trace(pair, name, train=True, rngs={"dropout": jax.random.key(0)})
    with pytest.raises(ValueError, match=f"'{name}' returns no attention weights"):
        trace(pair, name, output_attentions=True)
    t5 = {"model_type": "t5", "vocab_size": 29, "d_model": 8, "d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1}
    with pytest.raises(ValueError, match=f"'{name}' cannot do a bias on the scores: t5 needs it"):
        trace(make_pair(t5, t5), name)
    with pytest.raises(ValueError, match=f"'{name}' needs a ., and this process has a cpu".replace(".,", r"\w+,")):
        check_backend(name)


def test_what_one_kernel_cannot_do(pair):
    with pytest.raises(ValueError, match=r"'splash' cannot do lengths \(127, 127\): pad to multiples of 128"):
        trace(pair, "splash", length=127)
    with pytest.raises(ValueError, match="'cudnn' cannot do a head_dim of 4: it takes multiples of 8"):
        trace(pair, "cudnn", dtype=jnp.bfloat16)
    wide = make_pair({**BERT, **LONG, "hidden_size": 24}, {**GPT2, "n_embd": 24, "n_positions": LENGTH})
    with pytest.raises(ValueError, match="'cudnn' cannot do float32: compute in bfloat16"):
        trace(wide, "cudnn")
    with pytest.raises(ValueError, match=r"'cudnn' cannot do lengths \(5, 5\): pad to multiples of 2"):
        trace(wide, "cudnn", length=5, dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match="attention_impl 'splosh' is unknown: did you mean 'splash'"):
        trace(pair, "splosh")
