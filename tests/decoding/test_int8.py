"""Decoding with int8 kernels: near the float32 logits, exact where nothing is rounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import seq2seq_jax as s2s
from seq2seq_jax.config import LossConfig
from seq2seq_jax.models.int8 import int8_product, quantise

BERT = {
    "model_type": "bert",
    "vocab_size": 101,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 32,
}
IDS = np.random.default_rng(0).integers(3, 101, (2, 7))


@pytest.fixture(scope="module")
def pair():
    return s2s.from_encoder_decoder_configs(BERT, BERT, decoder_start_token_id=1, pad_token_id=0, eos_token_id=2)


def test_a_product_of_whole_numbers_is_exact():
    rng = np.random.default_rng(1)
    kernel, x = rng.integers(-127, 128, (6, 5)), rng.integers(-127, 128, (3, 5))
    kernel[:, 0] = x[:, 0] = 127  # so that a scale is 1
    values, scale = quantise(jnp.asarray(kernel, jnp.float32), (1,))
    np.testing.assert_array_equal(values, kernel)
    for first, product in ((True, kernel @ x.T), (False, x @ kernel.T)):
        y = int8_product(values, scale, jnp.asarray(x, jnp.float32), outputs_first=first)
        np.testing.assert_allclose(y, product, rtol=1e-6)
    zeros, none = quantise(jnp.zeros((2, 3)), (1,))
    assert not zeros.any() and not none.any()


def first_logits(pair):
    model, params = pair.model.for_decoding(), pair.model.decoding_params(pair.params)

    @jax.jit
    def run(params):
        mask = jnp.ones(IDS.shape, bool)
        states = model.apply({"params": params}, IDS, mask, method="encode")
        cache = model.apply({"params": params}, states, mask, 1, 8, method="init_cache")
        return model.apply({"params": params}, jnp.full((2, 1, 3), 5), cache, method="decode_step")[0]

    return np.asarray(run(params)), params


def test_logits_are_near(pair):
    exact, whole = first_logits(pair)
    near, small = first_logits(s2s.quantize(pair))
    error = np.abs(near - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.05
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    for side in ("encoder", "decoder"):
        assert size(small[side]["layers"]) < 0.35 * size(whole[side]["layers"])
        leaves = flatten_dict(small[side]["layers"], sep="/").items()
        assert {leaf.dtype for path, leaf in leaves if path.endswith("/kernel")} == {jnp.dtype("int8")}


@pytest.mark.slow
def test_a_pair_decodes_both_ways(pair):
    """Neither is served by what was made for the other."""
    settings = {"num_beams": 2, "max_length": 8}
    exact = pair.generate(IDS, **settings)
    near = s2s.quantize(pair).generate(IDS, **settings)
    form = s2s.quantize(pair).for_decoding()
    np.testing.assert_allclose(form.generate(IDS, **settings).sequences_scores, near.sequences_scores, rtol=1e-6)
    log_probs = [s2s.score(p.model, p.params, IDS, None, exact.sequences).token_log_probs for p in (form, pair)]
    assert 0 < np.abs(log_probs[0] - log_probs[1]).max() < 0.01
    batch = {"input_ids": IDS, "labels": exact.sequences}
    losses = [
        form.model.apply({"params": form.params}, **batch, loss_config=LossConfig(chunk=chunk), method="token_losses")
        for chunk in (None, 4)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert near.sequences_scores.shape == exact.sequences_scores.shape
    assert np.abs(np.asarray(near.sequences_scores) / np.asarray(exact.sequences_scores) - 1).max() > 1e-5
    np.testing.assert_array_equal(pair.generate(IDS, **settings).sequences, exact.sequences)
    with pytest.raises(ValueError, match="int8 kernels cannot be turned back"):
        model = s2s.quantize(pair).model
        model.training_params(model.decoding_params(pair.params))
