"""Packed = unpacked: loss and gradients of examples that share rows are those of examples in rows of their own."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from seq2seq_jax.data.pipeline import make_batch
from seq2seq_jax.data.plan import Bucket
from seq2seq_jax.models.targets import shift_tokens_right, wrap_tokens_right
from seq2seq_jax.models.transformer import count_positions
from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_configs
from tests.weights.checkpoints import noisy

TOKENS = {"decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": 2}
LONGEST = 9  # as many positions as a model has: a packed row, and even its tail, is longer
LENGTHS = [(9, 4), (5, 9), (7, 3), (3, 6), (8, 5)]
ROWS = np.array([[0, 1, -1], [2, 3, 4], [-1, -1, -1]])
SIZES = {"vocab_size": 31, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
         "max_position_embeddings": LONGEST}  # fmt: skip
WIDE = {"vocab_size": 31, "d_model": 12, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
        "max_position_embeddings": LONGEST}  # fmt: skip
GEMMA = {**SIZES, "num_key_value_heads": 1, "head_dim": 6, "layer_types": ["sliding_attention"], "eoi_token_index": 5}
ENCODERS = {
    "roberta": {**SIZES, "pad_token_id": 0, "max_position_embeddings": LONGEST + 1},
    "modernbert": {**SIZES, "local_attention": 4, "layer_types": ["sliding_attention"]},
    "deberta": {**SIZES, "relative_attention": True, "pos_att_type": "c2p|p2c", "max_relative_positions": 5},
    "t5gemma2_text": {**GEMMA, "sliding_window": 4},
    "mpnet": {**SIZES, "max_position_embeddings": LONGEST + 2, "relative_attention_num_buckets": 8},
}
DECODERS = {
    "opt": {**{name: SIZES[name] for name in SIZES if name != "intermediate_size"}, "ffn_dim": 16,
            "word_embed_proj_dim": 12},
    "llama": {**SIZES, "num_key_value_heads": 1},
    # It starts with the pad token, which is seen where a pack begins.
    "t5": {"vocab_size": 31, "d_model": 12, "d_kv": 6, "d_ff": 16, "num_layers": 1, "num_heads": 2,
           "relative_attention_num_buckets": 8, "relative_attention_max_distance": 6},
    "t5gemma2_decoder": {**GEMMA, "sliding_window": 3},
    "mbart": WIDE,
}  # fmt: skip
STARTS = {"t5": 0}


def examples(seed=0):
    rng = np.random.default_rng(seed)
    rows = [[rng.integers(3, 29, size).tolist() for size in pair] for pair in LENGTHS]
    sources, targets = ([row[side] for row in rows] for side in (0, 1))
    return SimpleNamespace(select=lambda chosen: ([sources[i] for i in chosen], [targets[i] for i in chosen]))


def both_batches(pad):
    """The examples in rows of their own, and packed."""
    apart = make_batch(examples(), Bucket(5, LONGEST, LONGEST), np.arange(5)[:, None], pad)
    # A tail is as long as 2 examples, and a whole row is empty.
    return apart, make_batch(examples(), Bucket(3, 34, 24), ROWS, pad, packed=True)


def assert_packed_equals_unpacked(pair, pad=0):
    """The loss to 1e-6 and the whole gradient to 2e-6 of themselves (jax 0.12 adds up in another order than 0.10); each
    parameter's part as closely as float32 adds it up."""
    run = jax.jit(jax.value_and_grad(lambda params, batch: pair.model.apply({"params": params}, **batch).loss))
    (apart, expected), (packed, found) = (run(pair.params, batch) for batch in both_batches(pad))
    np.testing.assert_allclose(packed, apart, rtol=1e-6)
    norm = lambda tree: float(optax.tree.norm(tree))
    whole, differences = norm(expected), jax.tree.map(np.subtract, found, expected)
    assert norm(differences) <= 2e-6 * whole
    parts = flatten_dict(expected, sep="/")
    for path, difference in flatten_dict(differences, sep="/").items():
        assert norm(difference) <= 5e-6 * max(norm(parts[path]), 0.01 * whole), path


PAIRS = list(zip(ENCODERS, DECODERS))
QUICK = ("modernbert", "t5gemma2_text")


@pytest.mark.parametrize(
    "encoder, decoder", [p if p[0] in QUICK else pytest.param(*p, marks=pytest.mark.slow) for p in PAIRS]
)
def test_packed_equals_unpacked(encoder, decoder):
    sides = {"model_type": encoder, **ENCODERS[encoder]}, {"model_type": decoder, **DECODERS[decoder]}
    tokens = {**TOKENS, "decoder_start_token_id": STARTS.get(decoder, 1)}
    pair = noisy(from_encoder_decoder_configs(*sides, **tokens))
    if decoder == "mbart":  # a whole model begins with the language's token, and hides no pads
        config = dataclasses.replace(pair.config, model_type="mbart", wrap_labels=True)
        pair = pair.replace(model=pair.model.clone(config=config))
    assert_packed_equals_unpacked(pair, pad=1 if encoder == "mpnet" else 0)


def family_cases():
    pytest.importorskip("torch")
    from tests.parity import family_models

    configs = {name: {"model_type": kind, **fields} for name, (kind, fields) in family_models.CASES.items()}
    return family_models, configs


@pytest.mark.slow
def test_every_family():
    """Each encoder before BERT's decoder, each decoder behind BERT's encoder."""
    models, configs = family_cases()
    bert = configs["bert"]
    pairs = [(name, configs[name], bert) for name in models.ENCODERS]
    pairs += [(name, bert, configs[name]) for name in models.DECODERS]
    failed = {}
    for name, encoder, decoder in pairs:
        try:
            pair = noisy(from_encoder_decoder_configs(encoder, decoder, **TOKENS))
            pad = pair.config.encoder.position_pad_id or 0
            assert_packed_equals_unpacked(pair, pad)
        except AssertionError as error:
            failed[name, decoder["model_type"]] = str(error)
        jax.clear_caches()
    assert not failed, failed


def test_shifts_restart_in_each_pack():
    labels = np.array([[5, 6, 7, 8, 9, -100, -100]])
    packs = np.array([[1, 1, 1, 2, 2, 0, 0]])
    np.testing.assert_array_equal(shift_tokens_right(labels, 0, 1, packs)[:, :5], [[1, 5, 6, 1, 8]])
    np.testing.assert_array_equal(wrap_tokens_right(labels, 0, packs)[:, :5], [[7, 5, 6, 9, 8]])


def test_positions_restart_in_each_pack():
    packs = np.array([[1, 1, 1, 2, 2, 0, 0]])
    real = np.array([[1, 1, 1, 1, 1, 0, 0]], bool)
    np.testing.assert_array_equal(count_positions(real, packs), [[0, 1, 2, 0, 1, -1, -1]])
    np.testing.assert_array_equal(count_positions(real, None), [[0, 1, 2, 3, 4, -1, -1]])
    real[0, 3] = False  # a pack that begins with what is not counted
    np.testing.assert_array_equal(count_positions(real, packs), [[0, 1, 2, -1, 0, -1, -1]])


def test_pack_longer_than_the_positions():
    bert = {"model_type": "bert", **SIZES, "num_hidden_layers": 1}
    pair = from_encoder_decoder_configs(bert, bert, **TOKENS)
    ids, packs = np.full((1, 20), 5), np.repeat([[1, 2, 0]], [9, 10, 1], axis=1)
    apply = lambda ids, packs: pair.model.apply(
        {"params": pair.params}, ids, labels=ids, encoder_pack_ids=packs, decoder_pack_ids=packs
    )
    with pytest.raises(ValueError, match=r"a sequence of 10 tokens is longer than the 9 positions of this bert"):
        apply(ids, packs)
    fitting = np.repeat([[1, 2, 0]], [9, 9, 2], axis=1)
    assert jax.eval_shape(lambda ids: apply(ids, fitting), ids).logits.shape == (1, 20, 31)
