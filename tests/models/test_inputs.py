"""Inputs of a forward pass that cannot be right, and what may be given in place of ids."""

import jax
import numpy as np
import pytest

from seq2seq_jax.config import LossConfig
from seq2seq_jax.decoding.scoring import score
from seq2seq_jax.models.encoder_decoder import EncoderDecoderOutput
from seq2seq_jax.models.losses import label_weights
from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_configs
from seq2seq_jax.training.step import StepConfig, loss_and_grads
from tests.weights.checkpoints import BERT, GPT2, TOKENS, noisy

SMALL = {**BERT, "num_hidden_layers": 1}
ROBERTA = {**SMALL, "model_type": "roberta", "pad_token_id": 1, "type_vocab_size": 1}
IDS = np.random.default_rng(0).integers(3, 29, (2, 4))


@pytest.fixture(scope="module")
def pair():
    return noisy(from_encoder_decoder_configs(SMALL, {**GPT2, "n_layer": 1}, **TOKENS))


@pytest.fixture(scope="module")
def roberta():
    return from_encoder_decoder_configs(ROBERTA, ROBERTA, **TOKENS)


def apply(pair, **inputs):
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS, **inputs}
    return pair.model.apply({"params": pair.params}, **inputs)


BAD = {
    "token type": ({"token_type_ids": IDS * 0 + 2}, "token_type_ids holds the id 2, outside the table of 2 token"),
    "negative type": ({"token_type_ids": IDS * 0 - 1}, "token_type_ids holds the id -1, .*give 0 to 1, or leave"),
    "position": ({"position_ids": IDS * 0 + 16}, "position_ids holds the id 16, outside the table of 16 positions of"),
    "negative position": ({"decoder_position_ids": IDS * 0 - 1}, "decoder_position_ids holds the id -1, outside"),
    "decoder position": ({"decoder_position_ids": IDS * 0 + 16}, "give 0 to 15, or load with decoder_max_position_emb"),
    "float ids": ({"input_ids": IDS / 1}, "input_ids has dtype float64; give whole numbers"),
    "bool ids": ({"decoder_input_ids": IDS > 0}, "decoder_input_ids has dtype bool; give whole numbers"),
    "float types": ({"token_type_ids": IDS * 0.0}, "token_type_ids has dtype float64"),
    "float positions": ({"position_ids": IDS * 0.0}, "position_ids has dtype float64"),
    "flat ids": ({"input_ids": IDS[0]}, r"input_ids has shape \[4\]; give \[batch, length\]"),
    "mask": ({"attention_mask": IDS[:, 1:] > 0}, r"attention_mask has shape \[2, 3\] and input_ids \[2, 4\]"),
    "decoder mask": ({"decoder_attention_mask": IDS[:1] > 0}, r"decoder_attention_mask has shape \[1, 4\]"),
    "types": ({"token_type_ids": IDS[:1] * 0}, r"token_type_ids has shape \[1, 4\] and input_ids \[2, 4\]; give"),
    "labels": ({"labels": IDS[:, :3]}, r"labels has shape \[2, 3\]; give it \[2, 4\]"),
    "batch": ({"decoder_input_ids": IDS[:1]}, "decoder_input_ids has a batch of 1 and input_ids one of 2"),
    "labels' batch": (
        {"decoder_input_ids": None, "labels": IDS[:1]}, "labels has a batch of 1 and input_ids one of 2",
    ),
    "states' batch": (
        {"input_ids": None, "encoder_outputs": np.zeros((3, 4, 12))},
        "decoder_input_ids has a batch of 2 and encoder_outputs one of 3",
    ),
    "flat mask": ({"attention_mask": IDS[0] > 0}, r"attention_mask has shape \[4\] and input_ids \[2, 4\]; give"),
    "deep mask": ({"attention_mask": IDS[:, None, None] > 0}, r"attention_mask has shape \[2, 1, 1, 4\] and input_ids"),
    "flat decoder ids": ({"decoder_input_ids": IDS[0]}, r"decoder_input_ids has shape \[4\]; give \[batch, length\]"),
    "flat labels": ({"labels": IDS[0]}, r"labels has shape \[4\]; give it \[2, 4\]"),
    "types' batch": ({"token_type_ids": np.zeros((3, 4), int)}, r"token_type_ids has shape \[3, 4\] and input_ids"),
    "ragged ids": ({"input_ids": [[3, 4], [5]]}, "input_ids is a ragged list, with rows of 1 to 2; pad it"),
    "ragged mask": ({"attention_mask": [[1, 1], [1]]}, "attention_mask is a ragged list, with rows of 1 to 2; pad it"),
    "ragged labels": ({"labels": [[3, 4], [5]]}, "labels is a ragged list, with rows of 1 to 2; pad it"),
    "texts": ({"input_ids": ["a b", "c d"]}, "input_ids holds 'a b'; give numbers"),
    "a mask of texts": ({"attention_mask": np.full((2, 4), "1")}, "attention_mask holds '1'; give numbers"),
    "nothing": ({"input_ids": IDS[:, :0]}, r"input_ids has shape \[2, 0\], which holds nothing"),
    "neither": ({"input_ids": None}, "nothing to read; give input_ids or inputs_embeds, or encoder_outputs"),
    "both": ({"inputs_embeds": np.zeros((2, 4, 12))}, "input_ids and inputs_embeds are both given"),
    "decoder's both": ({"decoder_inputs_embeds": np.zeros((2, 4, 12))}, "decoder_input_ids and decoder_inputs_embeds"),
    "width": ({"input_ids": None, "inputs_embeds": np.zeros((2, 4, 11))}, r"give \[batch, length, 12\]"),
    "states": ({"encoder_outputs": np.zeros((2, 4, 5))}, r"encoder_outputs holds float64 of shape \[2, 4, 5\]"),
    "states and types": ({"encoder_outputs": np.zeros((2, 4, 12)), "token_type_ids": IDS * 0}, "no encoder runs"),
    "weights": ({"labels": IDS, "loss_weights": np.ones((2, 3))}, r"loss_weights has shape \[2, 3\]; give \[2, 4\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_wrong_inputs(pair, name):
    inputs, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        apply(pair, **inputs)


WRONG_STATES = np.zeros((2, 4, 5), np.float32)
STATES = np.zeros((2, 4, 12), np.float32)


@pytest.mark.parametrize(
    "method, arguments, message",
    [
        ("logits", (WRONG_STATES,), r"states has shape \[2, 4, 5\]; give \[\.\.\., 12\]"),
        ("init_cache", (WRONG_STATES, IDS > 0, 1, 4), r"encoder_states has shape \[2, 4, 5\]; give"),
        ("init_cache", (STATES, IDS[:1] > 0, 1, 4), "attention_mask has a batch of 1 and encoder_states one of 2"),
        ("decode_step", (IDS,), r"tokens has shape \[2, 4\]; give \[batch, beams, count\]"),
        ("decode_step", (IDS[:1, None],), "cache has a batch of 2 and tokens one of 1"),
    ],
)
def test_wrong_inputs_of_a_method(pair, method, arguments, message):
    model, variables = pair.model.for_decoding(), {"params": pair.model.decoding_params(pair.params)}
    if method == "decode_step":
        arguments = (*arguments, model.apply(variables, STATES, IDS > 0, 1, 4, method="init_cache"))
    with pytest.raises(ValueError, match=message):
        model.apply(variables, *arguments, method=method)


def test_wrong_inputs_of_generate_and_score(pair):
    types = IDS * 0 + 2
    with pytest.raises(ValueError, match="token_type_ids holds the id 2"):
        pair.generate(IDS, token_type_ids=types, max_new_tokens=2)
    with pytest.raises(ValueError, match="token_type_ids holds the id 2"):
        score(pair.model, pair.params, IDS, None, IDS, token_type_ids=types)
    with pytest.raises(ValueError, match="token_type_ids holds the id 2"):
        pair.model.apply({"params": pair.params}, IDS, None, types, method="encode")
    with pytest.raises(ValueError, match="input_ids has dtype float64"):
        pair.generate(IDS / 1, max_new_tokens=2)
    with pytest.raises(ValueError, match="labels has dtype float64"):
        score(pair.model, pair.params, IDS, None, IDS / 1)
    states = np.zeros((2, 4, 12), np.float32)
    for setting in ({"encoder_repetition_penalty": 1.2}, {"encoder_no_repeat_ngram_size": 2},
                    {"prompt_lookup_num_tokens": 2}):  # fmt: skip
        with pytest.raises(ValueError, match=f"{next(iter(setting))} "):
            pair.generate(encoder_outputs=states, max_new_tokens=2, **setting)


def test_roberta_counts_explicit_positions_from_its_pad_token(roberta):
    """Its table has 16 rows, of which 2 to 15 are of tokens and 1 of padding."""
    apply(roberta, position_ids=IDS * 0 + 15)
    with pytest.raises(ValueError, match="position_ids holds the id 16, outside the table of 16 positions"):
        apply(roberta, position_ids=IDS * 0 + 16)
    with pytest.raises(ValueError, match="token_type_ids holds the id 1, outside the table of 1 token types"):
        apply(roberta, token_type_ids=IDS * 0 + 1)


def test_while_tracing_kinds_are_checked_and_values_are_nan(pair):
    run = jax.jit(lambda types: apply(pair, token_type_ids=types).logits)
    assert np.isnan(run(IDS * 0 + 2)).all()
    with pytest.raises(ValueError, match="token_type_ids has dtype float32"):
        run(IDS * np.float32(0))


def test_encoder_outputs_in_every_form(pair):
    states = pair.model.apply({"params": pair.params}, IDS, method="encode")
    expected = apply(pair).logits
    for form in (states, np.asarray(states), (states, None), [states], {"last_hidden_state": states},
                 EncoderDecoderOutput(logits=None, encoder_last_hidden_state=states)):  # fmt: skip
        given = apply(pair, input_ids=None, encoder_outputs=form)
        np.testing.assert_allclose(given.logits, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(given.encoder_last_hidden_state, states)


SLOW_WAYS = [pytest.param(way, marks=pytest.mark.slow) for way in ({}, {"penalty_alpha": 0.4, "top_k": 3})]


@pytest.mark.parametrize("way", [{"num_beams": 3}, *SLOW_WAYS], ids=str)
def test_generate_from_states_and_embeddings(pair, way):
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    states = pair.model.apply({"params": pair.params}, IDS, mask, method="encode")
    embeds = pair.params["encoder"]["embeddings"]["token"]["embedding"][IDS]
    options = {"attention_mask": mask, "max_new_tokens": 6, **way}
    expected = pair.generate(IDS, **options).sequences
    np.testing.assert_array_equal(pair.generate(encoder_outputs=states, **options).sequences, expected)
    np.testing.assert_array_equal(pair.generate(inputs_embeds=embeds, **options).sequences, expected)


PACKS = np.array([[1, 1, 2, 2, 0], [1, 2, 2, 2, 3]])
LABELS = np.array([[5, -100, 7, 8, -100], [3, 4, 5, 6, 7]])


def test_weights_of_tokens_examples_and_packs():
    tokens = np.arange(1.0, 11.0).reshape(2, 5)
    real = LABELS != -100
    np.testing.assert_array_equal(label_weights(tokens, LABELS), tokens * real)
    np.testing.assert_array_equal(label_weights(np.array([2, 3]), LABELS), np.array([[2], [3]]) * real)
    np.testing.assert_array_equal(label_weights(np.array([[2.0], [3.0]]), LABELS), np.array([[2], [3]]) * real)
    packs = np.array([[2.0, 3.0, 0.0], [4.0, 5.0, 6.0]])
    np.testing.assert_array_equal(label_weights(packs, LABELS, PACKS), [[2, 0, 3, 3, 0], [4, 5, 5, 5, 6]])
    assert np.isnan(label_weights(packs[:, :2], LABELS, PACKS)[1, 4])
    with pytest.raises(ValueError, match=r"loss_weights has shape \[2, 3\]; give \[2, 5\].*decoder_pack_ids"):
        label_weights(packs, LABELS)


@pytest.mark.parametrize("options", [{}, {"accumulation": 2}, {"loss": LossConfig(chunk=3)}], ids=str)
def test_weighted_loss(pair, options):
    """sum(weight * loss) / sum(weight) of the token losses, and its gradient by finite weights' linearity."""
    draw = np.random.default_rng(1)
    labels = np.where(draw.random((2, 4)) < 0.2, -100, IDS)
    weights = draw.random((2, 4)).astype(np.float32)
    variables = {"params": pair.params}
    losses = pair.model.apply(variables, input_ids=IDS, labels=labels, method="token_losses")
    counted = weights * (labels != -100)
    expected = np.sum(losses * weights) / np.sum(counted)
    batch = {"input_ids": IDS, "labels": labels, "loss_weights": weights}
    np.testing.assert_allclose(pair.model.apply(variables, **batch).loss, expected, rtol=1e-5)
    run = jax.jit(lambda params, batch: loss_and_grads(pair.model, params, batch, config=StepConfig(**options)))
    loss, grads, tokens = run(pair.params, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert tokens == np.sum(labels != -100)
    mean = jax.jit(jax.grad(lambda params: pair.model.apply({"params": params}, **batch).loss))(pair.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads, mean)
