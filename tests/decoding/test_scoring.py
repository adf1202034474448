"""Log-probabilities and cross-attention of given outputs: by the definition, by torch, and by the beam search."""

import math

import jax
import numpy as np
import pytest

from seq2seq_jax.decoding import scoring
from seq2seq_jax.decoding.scoring import cross_attentions, generated_mask, score, transition_scores
from tests.weights.checkpoints import BERT, GPT2, make_pair

# Two targets for each of two sources.
IDS = np.array([[5, 6, 7, 8, 9], [10, 11, 12, 0, 0]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
LABELS = np.array([[4, 5, 2, -100], [6, 2, -100, -100], [4, 5, 2, -100], [8, 9, 3, 2]])
SHIFTED = np.array([[1, 4, 5, 2], [1, 6, 2, 0], [1, 4, 5, 2], [1, 8, 9, 3]])


@pytest.fixture(scope="module")
def pair():
    return make_pair({**BERT, "num_hidden_layers": 1}, {**GPT2, "n_embd": 16, "n_head": 4})


@pytest.fixture(scope="module")
def whole(pair):
    """The model's own output on each source twice, targets given."""
    twice = {"input_ids": IDS[[0, 0, 1, 1]], "attention_mask": MASK[[0, 0, 1, 1]], "labels": LABELS}
    apply = lambda params: pair.model.apply(
        {"params": params}, **twice, decoder_input_ids=SHIFTED, output_attentions=True
    )
    return jax.jit(apply)(pair.params)


def test_score_by_the_definition(pair, whole):
    out = score(pair.model, pair.params, IDS, MASK, LABELS)
    expected = np.asarray(jax.nn.log_softmax(whole.logits))
    for row, column in np.ndindex(LABELS.shape):
        label = LABELS[row, column]
        value = 0 if label == -100 else expected[row, column, label]
        assert out.token_log_probs[row, column] == pytest.approx(value, abs=1e-5)
    assert out.token_counts.tolist() == [3, 2, 3, 4]
    np.testing.assert_allclose(out.sequence_log_probs, np.sum(out.token_log_probs, axis=1), rtol=1e-6)
    assert out.perplexity == pytest.approx(math.exp(float(whole.loss)), rel=1e-5)
    assert abs(out.sequence_log_probs[0] - out.sequence_log_probs[2]) > 1e-3, "the source does not matter"
    assert math.isnan(score(pair.model, pair.params, IDS, MASK, np.full_like(LABELS, -100)).perplexity)


def test_cross_attentions(pair, whole):
    layers = cross_attentions(pair.model, pair.params, IDS, MASK, SHIFTED)
    assert [layer.shape for layer in layers] == [(4, 4, 4, 5)] * 2
    for ours, theirs in zip(layers, whole.cross_attentions, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
        np.testing.assert_allclose(np.sum(ours, axis=-1), 1, rtol=1e-5)
        assert (np.asarray(ours)[2:, :, :, 3:] == 0).all(), "masked source tokens are looked at"


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 1.7])
def test_beam_scores_are_sums_of_transition_scores(pair, length_penalty):
    prompt = np.array([[1, 5, 6], [1, 7, 8]])
    out = pair.generate(
        IDS, MASK, num_beams=3, num_return_sequences=3, max_length=9, length_penalty=length_penalty,
        decoder_input_ids=prompt, eos_token_id=(2, 9, 12),
    )  # fmt: skip
    sequences, ends = np.asarray(out.sequences), {"eos_token_id": (2, 9, 12)}
    scores = transition_scores(pair.model, pair.params, IDS, MASK, sequences, prompt_length=3, **ends)
    counted = generated_mask(pair.model, sequences, 3, **ends)
    np.testing.assert_array_equal(counted, np.asarray(out.beam_indices) >= 0)
    assert scores.shape == (6, sequences.shape[1] - 3) and not np.asarray(scores)[~counted].any()
    sums = np.sum(scores, axis=1) / counted.sum(axis=1) ** length_penalty
    np.testing.assert_allclose(sums, out.sequences_scores, rtol=1e-4)
    assert length_penalty > 0 or not counted.all(), "no sequence ends early, so tails are not tested"


def test_generated_mask(pair):
    #                an end and a tail   a tail only         pads inside         the end token opens
    rows = np.array([[1, 5, 6, 2, 0, 0], [1, 5, 6, 7, 0, 0], [1, 0, 5, 2, 0, 0], [2, 2, 0, 0, 0, 0]])
    expected = [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]
    assert generated_mask(pair.model, rows).astype(int).tolist() == expected
    # Two end tokens, of which one is the pad.
    for row, eos, mask in ((rows[:1], (6, 0), [1, 1, 0, 0, 0]), (rows[1:2], 0, [1, 1, 1, 1, 0])):
        assert generated_mask(pair.model, row, eos_token_id=eos, pad_token_id=0).astype(int).tolist() == [mask]


def test_compiles_once_per_shape(pair):
    score(pair.model, pair.params, IDS, MASK, LABELS)
    before = scoring._log_probs._cache_size()
    score(pair.model, pair.params, IDS, MASK, np.full_like(LABELS, 3))
    assert scoring._log_probs._cache_size() == before
    transition_scores(pair.model, pair.params, IDS, MASK, np.full((6, 5), 3))
    before = scoring._log_probs._cache_size()
    transition_scores(pair.model, pair.params, IDS, MASK, np.full((6, 9), 3))
    assert scoring._log_probs._cache_size() == before, "lengths within the bucket share a compilation"


def test_bad_input(pair):
    call = lambda function, *arguments, **options: function(pair.model, pair.params, *arguments, **options)
    with pytest.raises(ValueError, match=r"input_ids has shape \[2, 5\] and labels \[3, 4\]; give"):
        call(score, IDS, MASK, np.zeros((3, 4), int))
    with pytest.raises(ValueError, match=r"attention_mask has shape \[2, 4\] and input_ids \[2, 5\]"):
        call(score, IDS, MASK[:, :4], LABELS)
    with pytest.raises(ValueError, match="labels holds the id 29, outside the vocabulary of 29"):
        call(score, IDS, MASK, np.full((2, 4), 29))
    with pytest.raises(ValueError, match="sequences holds the id -100"):
        call(transition_scores, IDS, MASK, LABELS)
    with pytest.raises(ValueError, match="prompt_length is 4 and the sequences have 4 tokens; give 1 to 3"):
        call(transition_scores, IDS, MASK, np.ones((2, 4), int), prompt_length=4)


@pytest.mark.parity
def test_equals_torch(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from seq2seq_jax.pretrained.loading import from_pretrained
    from tests import ladder
    from tests.parity import torch_models

    theirs = torch_models.pair("bert", "gpt2", encoder_changes={"num_hidden_layers": 1})
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    batch = ladder.random_batch((theirs.config.encoder.vocab_size, theirs.config.decoder.vocab_size))
    tensors = {name: torch.tensor(value) for name, value in batch.items()}
    source = (batch["input_ids"], batch["attention_mask"])
    with torch.no_grad():
        logits = theirs(**tensors).logits
    labels = tensors["labels"]
    expected = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    expected = torch.where(labels == -100, 0.0, expected).numpy()
    out = score(ours.model, ours.params, *source, batch["labels"])
    ladder.close(out.token_log_probs, expected, 1e-5, "token_log_probs")

    del tensors["labels"]
    beams = {"num_beams": 3, "num_return_sequences": 2, "max_length": 9, "output_scores": True}
    with torch.no_grad():
        found = theirs.generate(**tensors, **beams, return_dict_in_generate=True)
    transitions = theirs.compute_transition_scores(found.sequences, found.scores, found.beam_indices).numpy()
    sequences = ladder.until_end(found.sequences.numpy(), (2,), 0)
    mine = transition_scores(ours.model, ours.params, *source, sequences)
    ladder.close(mine[:, : transitions.shape[1]], transitions, 1e-5, "transition scores")
    assert not np.asarray(mine[:, transitions.shape[1] :]).any()
