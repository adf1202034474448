"""Beam search, greedy search and sampling against plain Python, on random Markov models."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2seq_jax.decoding.logits import Numbers, Switches
from seq2seq_jax.decoding.sampling import sample
from seq2seq_jax.decoding.search import beam_search

VOCAB, START, PAD, EOS = 6, 1, 0, 2


@struct.dataclass
class NoCache:
    """A Markov model remembers nothing but how far it is."""

    position: int = 0

    def after_prompt(self):
        return self

    def select(self, parents):
        return self


def markov(table):
    """A step function: log-probabilities of the next token [length, vocab, vocab], by position and last token.

    Without the position two paths of the same transitions in another order would tie.
    """

    def step(tokens, cache):
        return jnp.asarray(table)[cache.position, tokens[:, :, -1]], cache.replace(position=cache.position + 1)

    return step


def numbers(max_length, eos=(EOS,), **changes):
    base = {"min_length": 0, "pad_id": PAD, "forced_bos": 0, "top_k": 50}
    real = {"length_penalty": 1.0, "repetition_penalty": 1.0, "temperature": 1.0, "top_p": 1.0}
    return Numbers(
        max_length=jnp.int32(max_length),
        eos_ids=jnp.array(eos, jnp.int32),
        forced_eos=jnp.zeros(0, jnp.int32),
        **{name: jnp.int32(changes.get(name, value)) for name, value in base.items()},
        **{name: jnp.float32(changes.get(name, value)) for name, value in real.items()},
    )


SEARCHES = {}


def compiled_search(beams, early_stopping, min_length):
    switches = Switches(vocab_size=VOCAB, num_beams=beams, early_stopping=early_stopping, min_length=min_length)
    return jax.jit(lambda table, prompt, n: beam_search(markov(table), NoCache(), prompt, 8, switches, n))


def search(table, beams, max_length, eos, early_stopping, **changes):
    key = (beams, early_stopping, "min_length" in changes)
    if key not in SEARCHES:
        SEARCHES[key] = compiled_search(*key)
    prompt = jnp.full((1, 1), START, jnp.int32)
    sequences, scores, parents = SEARCHES[key](table, prompt, numbers(max_length, eos, **changes))
    return np.asarray(sequences[0]), np.asarray(scores[0]), np.asarray(parents[0])


def plain_search(table, beams, max_length, eos, early_stopping, length_penalty, min_length=0):
    """Beam search as hf-semantics writes it down, with lists."""
    running, done, improvable = [((START,), 0.0)], [], True
    length = 1
    while True:
        options = []
        for tokens, score in running:
            for token in range(VOCAB):
                if length < min_length and token in eos:
                    continue
                options.append((score + float(table[length - 1, tokens[-1], token]), (*tokens, token)))
        options.sort(key=lambda option: -option[0])
        options = options[: max(2, 1 + len(eos)) * beams]
        ends = [tokens[-1] in eos or length + 1 >= max_length for _, tokens in options]
        full = len(done) == beams
        for rank, ((score, tokens), end) in enumerate(zip(options, ends)):
            if end and rank < beams and improvable and not (full and early_stopping is True):
                done.append((score / length**length_penalty, tokens))
        done = sorted(done, key=lambda hypothesis: -hypothesis[0])[:beams]
        running = [(tokens, score) for (score, tokens), end in zip(options, ends) if not end][:beams]
        length += 1
        if not running:
            break
        reach = max_length - 1 if early_stopping == "never" and length_penalty > 0 else length - 1
        best = running[0][1] / reach**length_penalty
        worst = done[-1][0] if len(done) == beams else -1e9
        # torch compares with the worst of all places, which is -1e9 until they are all taken.
        improvable = improvable and best > worst
        if not improvable or (early_stopping is True and len(done) == beams):
            break
    return done


def random_table(seed, sharpness=2.0):
    logits = np.random.default_rng(seed).standard_normal((8, VOCAB, VOCAB)) * sharpness
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    beams=st.sampled_from([2, 3]),
    max_length=st.integers(2, 8),
    n_eos=st.sampled_from([1, 2]),
    length_penalty=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]),
)
def test_beam_search_is_the_plain_one(early_stopping, seed, beams, max_length, n_eos, length_penalty):
    table, eos = random_table(seed), (EOS, 4)[:n_eos]
    expected = plain_search(table, beams, max_length, eos, early_stopping, length_penalty)
    sequences, scores, parents = search(table, beams, max_length, eos, early_stopping, length_penalty=length_penalty)
    for i, (score, tokens) in enumerate(expected):
        assert tuple(sequences[i][: len(tokens)]) == tokens
        assert (sequences[i][len(tokens) :] == PAD).all()
        assert (parents[i] >= 0).sum() == len(tokens) - 1
        assert math.isclose(scores[i], score, rel_tol=1e-4, abs_tol=1e-5)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), min_length=st.integers(2, 6))
def test_minimum_length(seed, min_length):
    table = random_table(seed)
    expected = plain_search(table, 3, 8, (EOS,), False, 1.0, min_length)
    sequences, _, _ = search(table, 3, 8, (EOS,), False, min_length=min_length)
    assert tuple(sequences[0][: len(expected[0][1])]) == expected[0][1]
    assert EOS not in sequences[0][:min_length]


def test_enough_beams_search_exhaustively():
    """With V ** (T - 1) beams nothing is cut, so the best of all sequences must come out."""
    table, max_length = random_table(3, 1.0)[:, :4, :4], 4
    table = table - np.log(np.exp(table).sum(-1, keepdims=True))
    beams = 4 ** (max_length - 2)
    switches = Switches(vocab_size=4, num_beams=beams, early_stopping="never")
    prompt = jnp.full((1, 1), START, jnp.int32)
    run = jax.jit(lambda n: beam_search(markov(table), NoCache(), prompt, 4, switches, n))
    sequences, scores, _ = run(numbers(max_length, length_penalty=0.0))
    best = {}
    for tail in itertools.product(range(4), repeat=max_length - 1):
        tail = tail[: tail.index(EOS) + 1] if EOS in tail else tail
        whole = (START, *tail)
        best[whole] = sum(table[t, a, b] for t, (a, b) in enumerate(itertools.pairwise(whole)))
    winner = max(best, key=best.get)
    assert tuple(np.asarray(sequences)[0, 0][: len(winner)]) == winner
    assert math.isclose(scores[0, 0], best[winner], rel_tol=1e-5)


def test_greedy_is_the_best_next_token():
    table = random_table(5)
    run = jax.jit(lambda n: sample(markov(table), NoCache(), jnp.full((2, 1), START, jnp.int32), 8,
                                   Switches(vocab_size=VOCAB), n, None))  # fmt: skip
    sequences, length = run(numbers(8))
    tokens = [START]
    while len(tokens) < 8 and (len(tokens) == 1 or tokens[-1] != EOS):
        tokens.append(int(table[len(tokens) - 1, tokens[-1]].argmax()))
    assert int(length) == len(tokens)
    assert sequences[0, 0, : len(tokens)].tolist() == tokens == sequences[1, 0, : len(tokens)].tolist()


def draws(switches, nums, count=20_000, rows=1, seed=0):
    table = random_table(11, 1.0)
    prompt = jnp.full((rows, 1), START, jnp.int32)
    sequences, _ = sample(markov(table), NoCache(), prompt, 2, switches, nums, jax.random.key(seed))
    assert sequences.shape == (rows, count, 2)
    return np.asarray(sequences)[:, :, 1], table[0, START]


@pytest.mark.parametrize(
    "changes", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.7}, {"temperature": 1.5, "top_k": 4, "top_p": 0.8}]
)
def test_samples_follow_the_exact_distribution(changes):
    count = 20_000
    switches = Switches(
        vocab_size=VOCAB, num_return_sequences=count, do_sample=True, **{name: True for name in changes}
    )
    tokens, logits = draws(switches, numbers(2, **changes))
    logits = logits.astype(np.float64) / changes.get("temperature", 1.0)
    order = np.argsort(-logits)
    keep = np.arange(VOCAB) < changes.get("top_k", VOCAB)
    p = np.exp(logits[order]) * keep
    p /= p.sum()
    keep &= np.cumsum(p) - p < changes.get("top_p", 1.1)
    expected = np.zeros(VOCAB)
    expected[order] = p * keep / (p * keep).sum()
    observed = np.bincount(tokens[0], minlength=VOCAB)
    assert (observed[expected == 0] == 0).all()
    inside = expected > 0
    chi2 = (((observed - count * expected) ** 2)[inside] / (count * expected[inside])).sum()
    # 99.99 % quantiles of chi-square for 1 to 5 degrees of freedom.
    assert chi2 < [15.1, 18.4, 21.1, 23.5, 25.7][inside.sum() - 2], (observed, expected)


def test_a_row_draws_the_same_in_any_batch():
    switches = Switches(vocab_size=VOCAB, num_return_sequences=50, do_sample=True)
    alone, _ = draws(switches, numbers(2), count=50, rows=1)
    beside, _ = draws(switches, numbers(2), count=50, rows=3)
    np.testing.assert_array_equal(alone[0], beside[0])
    assert (beside[1] != beside[0]).any()
    other, _ = draws(switches, numbers(2), count=50, rows=1, seed=1)
    assert (other != alone).any()
