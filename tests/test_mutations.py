"""Tests of the tests: each of these mistakes must make a rung of the ladder fail."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from seq2seq_jax.config import Alias
from seq2seq_jax.models.attention import Attention
from tests import fixed, ladder


@pytest.fixture(scope="module")
def bert():
    return fixed.load("bert-bert")


@pytest.fixture(scope="module")
def bart():
    return fixed.load("gpt2-bart")


def with_config(pair, side, **changes):
    config = dataclasses.replace(getattr(pair.config, side), **changes)
    return pair.replace(model=pair.model.clone(config=dataclasses.replace(pair.config, **{side: config})))


def with_parameters(pair, change):
    """change(path, value) gives another value for each parameter."""
    flat = flatten_dict(pair.params, sep="/")
    return pair.replace(params=unflatten_dict({p: change(p, v) for p, v in flat.items()}, sep="/"))


def fails(check, pair, results):
    with pytest.raises(AssertionError):
        check(pair, results)


def test_wrong_position_offset(bart):
    pair, results = bart
    rows = pair.config.decoder.max_positions
    fails(ladder.check_forward, with_config(pair, "decoder", position_offset=1, max_positions=rows + 1), results)


def test_unmasked_padding(bert):
    pair, results = bert
    fails(ladder.check_forward, pair, {**results, "attention_mask": np.ones_like(results["attention_mask"])})


@pytest.mark.parametrize("name", ["cross_attention/value/bias", "mlp/up/bias", "head/bias", "enc_to_dec_proj/bias"])
def test_dropped_bias(bert, bart, name):
    pair, results = bart if name.startswith("enc_to_dec") else bert
    hit = [path for path in flatten_dict(pair.params, sep="/") if path.endswith(name)]
    assert hit
    fails(
        ladder.check_forward,
        with_parameters(pair, lambda path, value: jnp.zeros_like(value) if path in hit else value),
        results,
    )


def test_reversed_layer_order(bert):
    pair, results = bert
    change = lambda path, value: value[::-1] if path.startswith("encoder/layers/stacked/") else value
    fails(ladder.check_forward, with_parameters(pair, change), results)


def test_untied_tie(bert):
    """A head that is a copy of the table: the same logits, but the table's gradient lacks the head's part."""
    pair, results = bert
    untied = with_config(pair, "decoder", tie_head=False)
    table = pair.params["decoder"]["embeddings"]["token"]["embedding"]
    params = {**pair.params, "decoder": {**pair.params["decoder"]}}
    params["decoder"]["head"] = {**params["decoder"]["head"], "kernel": table}
    untied = untied.replace(params=params)
    ladder.check_forward(untied, results)
    fails(ladder.check_gradients, untied, results)


def test_wrong_tie(bert):
    pair, results = bert
    tie = (Alias("encoder/layers", "decoder/layers"),)
    config = dataclasses.replace(pair.config, tie_encoder_decoder=tie)
    flat = flatten_dict(pair.params, sep="/")
    kept = {p: v for p, v in flat.items() if not p.startswith("decoder/layers") or "cross_attention" in p}
    tied = pair.replace(model=pair.model.clone(config=config), params=unflatten_dict(kept, sep="/"))
    fails(ladder.check_forward, tied, results)


def test_cross_attention_without_gradient(bert, monkeypatch):
    pair, results = bert
    real = Attention.keys_values

    def stopped(self, x, *rotation):
        keys_values = real(self, x, *rotation)
        return jax.tree.map(jax.lax.stop_gradient, keys_values) if self.name == "cross_attention" else keys_values

    monkeypatch.setattr(Attention, "keys_values", stopped)
    ladder._forward.cache_clear()
    jax.clear_caches()
    try:
        ladder.check_forward(pair, results)
        fails(ladder.check_gradients, pair, results)
    finally:
        ladder._forward.cache_clear()
        jax.clear_caches()
