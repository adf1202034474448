"""Decoding in segments: a cache that grows, rows that leave, callbacks and clocks change no output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.decoding import engine
from seq2seq_jax.decoding.automata import TokenTrie
from seq2seq_jax.decoding.generate import generate
from seq2seq_jax.models import cpu
from seq2seq_jax.pretrained.pair import from_encoder_decoder_configs

BERT = {
    "model_type": "bert",
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
SOURCE = np.random.default_rng(0).integers(3, 101, (9, 11))


@pytest.fixture(scope="module")
def pair():
    """With random weights that are large enough for rows to end at different times."""
    return from_encoder_decoder_configs(BERT, BERT, decoder_start_token_id=1, pad_token_id=0, eos_token_id=2, seed=3)


# A row's length follows from its source, so that rows end early and late.
UNEVEN = jax.tree_util.Partial(
    lambda view: jnp.broadcast_to(view.length > 3 + view.source[:, :1], view.sequences.shape[:2])
)
WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "rng": jax.random.key(5), "num_return_sequences": 2},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "diverse": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "constrained": {"num_beams": 3, "force_words_ids": [[20, 21]]},
    "contrastive": {"penalty_alpha": 0.5, "top_k": 3},
    "lookup": {"prompt_lookup_num_tokens": 3},
}


def run(pair, **settings):
    out = generate(pair.model, pair.params, SOURCE, **{"max_length": 100, "criteria": [UNEVEN], **settings})
    return jax.tree.map(np.asarray, out)


def same(a, b):
    np.testing.assert_array_equal(a.sequences, b.sequences)
    np.testing.assert_array_equal(a.beam_indices, b.beam_indices)
    if a.sequences_scores is not None:
        np.testing.assert_allclose(a.sequences_scores, b.sequences_scores, rtol=1e-5)


def test_source_read_in_parts_is_read_whole(pair, monkeypatch):
    model, variables = pair.model.for_decoding(), {"params": pair.model.decoding_params(pair.params)}
    draw = np.random.default_rng(1)
    mask, types = draw.random(SOURCE.shape) > 0.3, draw.integers(0, 2, SOURCE.shape)
    states = model.apply(variables, SOURCE, mask, types, method="encode")
    expected = model.apply(variables, states, method="source_keys_values")
    monkeypatch.setattr(cpu, "ENCODED_TOKENS", 4 * SOURCE.shape[1])  # of nine rows three at a time
    source = engine.Source(SOURCE, mask, np.arange(len(SOURCE)))
    lowered = jax.jit(lambda: engine.encode_source(model, variables, source, {"token_type_ids": types})).lower()
    assert "while" in lowered.as_text() and "tensor<3x3x11xi1>" in lowered.as_text()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), lowered.compile()(), expected)


QUICK = ("beam",)


@pytest.mark.parametrize(
    "way", [pytest.param(way, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, way in WAYS.items()]
)
def test_segments_and_leaving_rows_change_nothing(pair, way, monkeypatch):
    monkeypatch.setattr(engine, "FIRST", 128)
    whole = run(pair, **way)
    monkeypatch.setattr(engine, "FIRST", 32)
    sizes, real = [], engine.resized
    monkeypatch.setattr(engine, "resized", lambda carry, capacity, pad, rows: sizes.append(rows) or real(
        carry, capacity, pad, rows
    ))  # fmt: skip
    same(run(pair, **way), whole)
    assert sizes and all(rows is None for rows in sizes), "the cache did not grow"
    sizes.clear()
    monkeypatch.setattr(engine, "SHRINK", 2)
    same(run(pair, compact=True, **way), whole)
    assert any(rows is not None for rows in sizes), "no row left"


def test_lookup_is_greedy(pair):
    same(run(pair, prompt_lookup_num_tokens=4), run(pair))


def test_a_callback_sees_the_output_grow(pair):
    seen = []
    whole = run(pair, callback=lambda sequences, length: seen.append(sequences[:, 0, :length].copy()))
    lengths = [part.shape[1] for part in seen]
    assert lengths == sorted(lengths) and lengths[0] == 2 and len(seen) > 3
    for part in seen:
        np.testing.assert_array_equal(part, whole.sequences[:, : part.shape[1]])
    np.testing.assert_array_equal(seen[-1], whole.sequences)


@pytest.mark.parametrize("beams", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_clock_ends_all(pair, beams):
    settings = {"num_beams": beams, "eos_token_id": (), "criteria": []}
    whole, short = run(pair, **settings), run(pair, max_time=1e-6, **settings)
    assert whole.sequences.shape[1] == 100 and short.sequences.shape[1] <= 3
    if beams == 1:
        np.testing.assert_array_equal(short.sequences[:, :2], whole.sequences[:, :2])


@pytest.mark.parametrize("beams", [1, 3])
def test_only_allowed_sequences(pair, beams):
    allowed = [[20, 21, 22], [20, 30], [40]]
    trie = TokenTrie.from_sequences(allowed, end=2)
    out = run(pair, num_beams=beams, allowed=trie, eos_token_id=2, max_length=8)
    for row in out.sequences:
        tokens = row[1:].tolist()
        assert tokens[: tokens.index(2)] in allowed


def test_your_own_processor_and_criterion(pair):
    odd = jax.tree_util.Partial(lambda scores, view: scores.at[..., 1::2].set(-np.inf))
    short = jax.tree_util.Partial(lambda view: view.length >= 6 + view.sequences[:, :, 1] * 0)
    out = run(pair, num_beams=2, processors=[odd], criteria=[short], eos_token_id=(2,))
    assert out.sequences.shape[1] <= 6 and (out.sequences[:, 1:] % 2 == 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4, "num_beam_groups": 3}, "num_beam_groups is 3 and num_beams 4"),
        ({"force_words_ids": [[5]]}, "force_words_ids needs several beams"),
        ({"num_beams": 2, "penalty_alpha": 0.5}, "penalty_alpha goes without beams and num_beams is 2"),
        (
            {"num_beams": 2, "force_words_ids": [[5]], "num_beam_groups": 2, "diversity_penalty": 1.0},
            "num_beam_groups and force_words_ids are",
        ),
        ({"penalty_alpha": 0.5, "output_scores": True}, "penalty_alpha records no output_scores"),
        ({"coverage_penalty": 0.5}, "coverage_penalty compares beams and num_beams is 1"),
        ({"do_sample": True}, "give rng="),
        ({"num_beams": 2, "callback": print}, "callback shows outputs while they grow"),
        ({"stop_strings": ["a"]}, "tokenizer="),
    ],
)
def test_what_does_not_go_together(pair, settings, message):
    with pytest.raises(ValueError, match=message):
        run(pair, **settings)
