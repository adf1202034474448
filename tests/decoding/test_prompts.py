"""Prompts of different lengths, functions of allowed tokens, and scores of samples, in `generate`."""

import jax
import numpy as np
import pytest

from seq2seq_jax.decoding.automata import TokenTrie
from seq2seq_jax.decoding.generate import generate
from seq2seq_jax.decoding.scoring import generated_mask, transition_scores
from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_configs

SIZES = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
BERT = {"model_type": "bert", **SIZES}
DECODERS = {
    "bert": BERT,
    "roberta": {"model_type": "roberta", **SIZES, "pad_token_id": 0},
    "llama": {"model_type": "llama", **SIZES, "tie_word_embeddings": False},
    "gpt2": {"model_type": "gpt2", "vocab_size": 101, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "t5": {"model_type": "t5", "vocab_size": 101, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2,
           "num_heads": 2},
    "bart": {"model_type": "bart", "vocab_size": 101, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 2,
             "decoder_ffn_dim": 48, "max_position_embeddings": 64},
}  # fmt: skip
START, EOS, PAD = 1, 2, 0
SOURCE = np.random.default_rng(0).integers(3, 101, (3, 7))
PROMPTS = [[START], [START, 9, 14, 9, 9], [START, 22, 23]]
KEY = jax.random.key(4)


def pair_of(decoder):
    tokens = {"decoder_start_token_id": START, "pad_token_id": PAD, "eos_token_id": EOS}
    return from_encoder_decoder_configs(BERT, DECODERS[decoder], seed=3, **tokens)


@pytest.fixture(scope="module")
def pair():
    return pair_of("bert")


def run(pair, source=SOURCE, **settings):
    return jax.tree.map(np.asarray, generate(pair.model, pair.params, source, **settings))


def padded(prompts):
    width = max(map(len, prompts))
    ids = np.array([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = np.array([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"decoder_input_ids": ids, "decoder_attention_mask": mask}


def check_rows(pair, rows=range(3), **settings):
    """Each row of a padded batch is what it is alone."""
    together = run(pair, **padded(PROMPTS), **settings)
    n = settings.get("num_return_sequences", 1)
    for row in rows:
        alone = run(pair, SOURCE[row : row + 1], decoder_input_ids=np.array([PROMPTS[row]]), **settings)
        for i in range(n):
            whole = together.sequences[row * n + i]
            got = whole[5 - len(PROMPTS[row]) :]
            size = min(len(got), alone.sequences.shape[1])
            np.testing.assert_array_equal(got[:size], alone.sequences[i, :size], err_msg=f"row {row}")
            assert (got[size:] == PAD).all() and (alone.sequences[i, size:] == PAD).all()
            assert (whole[: 5 - len(PROMPTS[row])] == PAD).all()
        if together.sequences_scores is not None:
            np.testing.assert_allclose(
                together.sequences_scores[row * n : row * n + n], alone.sequences_scores, rtol=1e-4, atol=1e-5
            )


WAYS = {
    "greedy": {},
    "max_length": {"max_length": 9, "forced_eos_token_id": EOS, "min_length": 7},
    "beam": {"num_beams": 3, "num_return_sequences": 2, "early_stopping": "never", "max_length": 9},
    "processors": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words_ids": [[PAD, 94]],
                   "forced_bos_token_id": 11, "begin_suppress_tokens": [94, 63]},
    "diverse": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "constrained": {"num_beams": 3, "force_words_ids": [[20, 21]], "max_length": 9},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 3},
    "lookup": {"prompt_lookup_num_tokens": 3},
}  # fmt: skip
QUICK = ("beam",)


@pytest.mark.parametrize(
    "way", [pytest.param(way, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, way in WAYS.items()]
)
def test_a_row_behind_pads_is_the_row_alone(pair, way):
    length = {} if "max_length" in way else {"max_new_tokens": 6}
    check_rows(pair, **length, **way)


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_positions_begin_behind_the_pads(name):
    check_rows(pair_of(name), rows=[0, 2], max_new_tokens=6, output_scores=True)


@pytest.mark.slow
def test_samples_behind_pads_are_the_row_s(pair):
    check_rows(pair, rows=[0], max_new_tokens=6, do_sample=True, rng=KEY, num_return_sequences=2)


def test_start_tokens_stand_behind_the_pads(pair):
    without = {"decoder_input_ids": [[PAD, 9], [7, 8]], "decoder_attention_mask": [[0, 1], [1, 1]]}
    got = run(pair, SOURCE[:2], max_new_tokens=2, **without).sequences
    np.testing.assert_array_equal(got[:, :3], [[PAD, START, 9], [START, 7, 8]])


@pytest.mark.parametrize("mask", [[[1, 1], [1, 0]], [[0, 0], [1, 1]], [[0, 1]]])
def test_masks_that_are_none(pair, mask):
    with pytest.raises(ValueError, match=r"decoder_attention_mask"):
        run(pair, SOURCE[:2], decoder_input_ids=[[1, 5], [1, 6]], decoder_attention_mask=mask)


SLOW = [pytest.param(way, marks=pytest.mark.slow) for way in ({}, {"do_sample": True, "rng": KEY})]


@pytest.mark.parametrize(
    "way", [{"num_beams": 3, "num_return_sequences": 2}, *SLOW], ids=("beams", "greedy", "samples")
)
def test_a_function_of_allowed_tokens_is_the_trie(pair, way):
    sequences = [[5, 6, 7], [5, 8], [9, 10, 11, 12]]
    trie = TokenTrie.from_sequences(sequences, end=EOS)
    seen = set()

    def allowed(row, ids):
        seen.add((row, type(ids), ids[0]))
        after = tuple(ids[1:])
        following = {(*s, EOS)[len(after)] for s in map(tuple, sequences) if (*s, EOS)[: len(after)] == after and
                     len(after) <= len(s)}  # fmt: skip
        return sorted(following) or [EOS, 50]

    ours = run(pair, prefix_allowed_tokens_fn=allowed, max_new_tokens=6, **way)
    theirs = run(pair, allowed=trie, max_new_tokens=6, **way)
    np.testing.assert_array_equal(ours.sequences, theirs.sequences)
    given = run(pair, prefix_allowed_tokens_fn=trie, max_new_tokens=6, **way)
    np.testing.assert_array_equal(given.sequences, theirs.sequences)
    with pytest.raises(ValueError, match="are both tries; give one of them"):
        run(pair, prefix_allowed_tokens_fn=trie, allowed=trie, max_new_tokens=6)
    assert seen == {(row, np.ndarray, START) for row in range(3)}


ANSWERS = {"allows nothing": [], "below the vocabulary's size 101": [5, 101], "a list of ids": ["a"]}


@pytest.mark.parametrize("message", ANSWERS)
def test_answers_that_are_none(pair, message):
    with pytest.raises(ValueError, match=rf"prefix_allowed_tokens_fn, asked for row 0 after \[1\], .*{message}"):
        run(pair, prefix_allowed_tokens_fn=lambda row, ids: ANSWERS[message], max_new_tokens=6)
    with pytest.raises(ZeroDivisionError):
        run(pair, prefix_allowed_tokens_fn=lambda row, ids: [1 // 0], max_new_tokens=6)


def test_scores_of_samples_are_the_models(pair):
    settings = {"do_sample": True, "rng": KEY, "num_return_sequences": 4, "max_new_tokens": 6, "length_penalty": 0.7}
    drawn = run(pair, **settings, top_p=0.9, temperature=1.5)
    each = transition_scores(pair.model, pair.params, SOURCE, None, drawn.sequences)
    count = generated_mask(pair.model, drawn.sequences).sum(axis=1)
    np.testing.assert_allclose(drawn.sequences_scores, each.sum(axis=1) / count**0.7, rtol=1e-4)
    best = run(pair, **settings, top_p=0.9, temperature=1.5, best_first=True)
    order = np.argsort(-drawn.sequences_scores.reshape(3, 4), axis=1) + 4 * np.arange(3)[:, None]
    np.testing.assert_array_equal(best.sequences, drawn.sequences[order.reshape(-1)])
    np.testing.assert_array_equal(best.sequences_scores, drawn.sequences_scores[order.reshape(-1)])
    assert (order != np.arange(12).reshape(3, 4)).any()
    assert run(pair, max_new_tokens=6).sequences_scores is None
