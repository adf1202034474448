"""T5Gemma 2's decoder, whose self-attention reads the source too; and what LongRoPE's models refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seq2seq_jax as s2s
from seq2seq_jax.pretrained.saving import save_decoder
from tests.weights.checkpoints import noisy

OWN = 7
SIZES = {"vocab_size": 41, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 6,
         "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32, "sliding_window": 4,
         "layer_types": ["sliding_attention"], "eoi_token_index": OWN}  # fmt: skip
TOKENS = {"decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": 2}
BATCH = {
    "input_ids": np.random.default_rng(0).integers(3, 41, (2, 9)),
    "attention_mask": np.array([[1] * 9, [0, 0] + [1] * 5 + [0, 0]]),
    "labels": np.random.default_rng(1).integers(3, 41, (2, 6)),
}


@pytest.fixture(scope="module")
def pair():
    sides = ({"model_type": f"t5gemma2_{part}", **SIZES} for part in ("text", "decoder"))
    return noisy(s2s.from_encoder_decoder_configs(*sides, tie_encoder_decoder="embeddings", **TOKENS))


@pytest.fixture(scope="module")
def gradient(pair):
    return jax.jit(jax.grad(lambda params, batch: pair.model.apply({"params": params}, **batch).loss))


def test_one_softmax_over_both(pair):
    out = jax.jit(lambda p: pair.model.apply({"params": p}, **BATCH, output_attentions=True))(pair.params)
    for own, source in zip(out.decoder_attentions, out.cross_attentions, strict=True):
        assert own.shape == (2, 4, 6, 6) and source.shape == (2, 4, 6, 9)
        np.testing.assert_allclose(own.sum(-1) + source.sum(-1), 1.0, rtol=1e-5)
        assert (np.asarray(source).sum((2, 3)) > 0.1).all()
        assert not np.asarray(source)[1][..., BATCH["attention_mask"][1] == 0].any()


@pytest.mark.slow
def test_remat_changes_no_gradient(pair, gradient):
    model = pair.model.clone(remat="elementwise")
    grads = jax.jit(jax.grad(lambda p: model.apply({"params": p}, **BATCH).loss))(pair.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, gradient(pair.params, BATCH)
    )


@pytest.mark.parametrize("side", ["input_ids", "labels"])
def test_both_sides_share_the_embedding_of_one_token(pair, gradient, side):
    """Its gradient comes from either side, and is zero where the token is on none."""
    assert "embeddings" not in pair.params["decoder"]
    without = {name: np.where(BATCH[name] == OWN, OWN + 1, BATCH[name]) for name in ("input_ids", "labels")}
    own = lambda batch: np.abs(gradient(pair.params, batch)["encoder"]["embeddings"]["own_token"]["embedding"]).max()
    batch = {**BATCH, **without}
    assert own(batch) == 0.0
    assert own({**batch, side: np.full_like(BATCH[side], OWN)}) > 0.0


def test_int8_is_near(pair):
    """One step over the cache, the source's keys and values made by int8 kernels too."""

    def first(pair):
        model, params = pair.model.for_decoding(), pair.model.decoding_params(pair.params)

        @jax.jit
        def run(params):
            mask = jnp.asarray(BATCH["attention_mask"], bool)
            states = model.apply({"params": params}, BATCH["input_ids"], mask, method="encode")
            cache = model.apply({"params": params}, states, mask, 1, 8, method="init_cache")
            return model.apply({"params": params}, jnp.full((2, 1, 3), 5), cache, method="decode_step")[0]

        return np.asarray(run(params))

    exact, near = first(pair), first(s2s.quantize(pair))
    assert 0 < np.abs(near - exact).max() / np.abs(exact).max() < 0.05


def test_what_is_refused(pair, tmp_path):
    with pytest.raises(ValueError, match=r"torch has no causal language model of t5gemma2's decoder alone"):
        save_decoder(tmp_path, pair)
    with pytest.raises(ValueError, match="'splash' cannot do self-attention and cross-attention in one"):
        long = {name: np.ones((1, 128), int) for name in ("input_ids", "labels")}
        model = pair.model.clone(attention_impl="splash")
        wide = dataclasses.replace(model.config.encoder, max_positions=128)
        narrow = dataclasses.replace(model.config.decoder, max_positions=128)
        model = model.clone(config=dataclasses.replace(model.config, encoder=wide, decoder=narrow))
        jax.eval_shape(lambda: model.apply({"params": pair.params}, **long))


def test_long_rope_refuses_the_long_factor():
    long = {"type": "su", "short_factor": [1.0, 1.5], "long_factor": [2.0, 4.0]}
    phi = {"model_type": "phi3", **{k: v for k, v in SIZES.items() if k in ("vocab_size", "hidden_size")},
           "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 64,
           "original_max_position_embeddings": 8, "rope_theta": 100.0, "rope_scaling": long}  # fmt: skip
    pair = s2s.from_encoder_decoder_configs(phi, phi, **TOKENS)
    assert pair.config.decoder.rotaries[0].factor == pytest.approx((1 + np.log(8) / np.log(8)) ** 0.5)
    ids = np.full((1, 9), 5)
    with pytest.raises(ValueError, match=r"a sequence of 9 tokens is longer than 8: .*LongRoPE's long_factor"):
        pair.model.apply({"params": pair.params}, ids, method="encode")
    with pytest.raises(ValueError, match=r"a sequence of 9 tokens is longer than 8: .*LongRoPE's long_factor"):
        pair.generate(ids[:, :8], max_length=9)
    assert pair.generate(ids[:, :8]).sequences.shape[1] <= 8  # the default length is cut to it
    with pytest.raises(ValueError, match="short_factor has 3 numbers, and 2 frequencies are to be scaled"):
        wrong = {**phi, "rope_scaling": {**long, "short_factor": [1.0, 1.0, 1.0]}}
        s2s.from_encoder_decoder_configs(wrong, wrong, **TOKENS)
