"""Beam search, greedy search and sampling against plain Python, on random Markov models."""

import itertools
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2seq_jax.decoding import decode_loop
from seq2seq_jax.decoding.beam_search import BeamSearch
from seq2seq_jax.decoding.sampling import Sampling
from seq2seq_jax.decoding.warpers import Temperature, TopKTopP
from tests.decoding.markov import (
    CAPACITY,
    EOS,
    PAD,
    START,
    VOCAB,
    NoCache,
    markov,
    prompt,
    random_table,
    run_search,
    search_params,
    source,
)

SEARCHES = {}


def compiled(strategy):
    """A search by `strategy` as a compiled function of (table, search_params)."""
    if strategy not in SEARCHES:
        SEARCHES[strategy] = jax.jit(
            lambda table, r: run_search(strategy, markov(table), NoCache(), source(), prompt(), CAPACITY, r)
        )
    return SEARCHES[strategy]


def search(table, beams, max_length, eos, early_stopping, **changes):
    found = compiled(BeamSearch(beams, early_stopping=early_stopping))(table, search_params(max_length, eos, **changes))
    return tuple(np.asarray(found[name][0]) for name in ("sequences", "scores", "beam_indices"))


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


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@settings(max_examples=40)
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
    table, max_length = random_table(3, 1.0, vocab=4), 4
    strategy = BeamSearch(4 ** (max_length - 2), early_stopping="never")
    found = compiled(strategy)(table, search_params(max_length, length_penalty=0.0))
    sequences, scores = found["sequences"], found["scores"]
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
    found = compiled(Sampling())(table, search_params(8))
    tokens = [START]
    while len(tokens) < 8 and (len(tokens) == 1 or tokens[-1] != EOS):
        tokens.append(int(table[len(tokens) - 1, tokens[-1]].argmax()))
    assert int(found["lengths"][0]) == len(tokens)
    assert found["sequences"][0, 0, : len(tokens)].tolist() == tokens


def draws(changes, count=20_000, rows=1, seed=0):
    table, warpers = random_table(11, 1.0), []
    if "temperature" in changes:
        warpers.append(Temperature(np.float32(changes["temperature"])))
    if "top_k" in changes or "top_p" in changes:
        top_k = np.int32(changes["top_k"]) if "top_k" in changes else None
        top_p = np.float32(changes["top_p"]) if "top_p" in changes else None
        warpers.append(TopKTopP(top_k, top_p, np.int32(1), 4 if top_k is not None else None))
    strategy = Sampling(count, do_sample=True)
    r = search_params(2, warpers=tuple(warpers), rng=jax.random.key(seed))
    given = source([(3, 4, 5)] * rows)
    run = jax.jit(lambda table, r: run_search(strategy, markov(table), NoCache(), given, prompt(rows), 2, r))
    sequences = run(table, r)["sequences"]
    assert sequences.shape == (rows, count, 2)
    return np.asarray(sequences)[:, :, 1], table[0, START]


# 99.99 % quantiles of chi-square, by degrees of freedom.
QUANTILES = {1: 15.1, 2: 18.4, 3: 21.1, 4: 23.5, 5: 25.7, 29: 66.2}


def check_draws(observed, expected):
    """Counts against exact probabilities."""
    count, inside = observed.sum(), expected > 0
    assert (observed[~inside] == 0).all()
    chi2 = (((observed - count * expected) ** 2)[inside] / (count * expected[inside])).sum()
    assert chi2 < QUANTILES[int(inside.sum()) - 1], (observed, count * expected)


@pytest.mark.parametrize(
    "changes", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.7}, {"temperature": 1.5, "top_k": 4, "top_p": 0.8}]
)
def test_samples_follow_the_exact_distribution(changes):
    tokens, logits = draws(changes)
    logits = logits.astype(np.float64) / changes.get("temperature", 1.0)
    order = np.argsort(-logits)
    keep = np.arange(VOCAB) < changes.get("top_k", VOCAB)
    p = np.exp(logits[order]) * keep
    p /= p.sum()
    keep &= np.cumsum(p) - p < changes.get("top_p", 1.1)
    expected = np.zeros(VOCAB)
    expected[order] = p * keep / (p * keep).sum()
    check_draws(np.bincount(tokens[0], minlength=VOCAB), expected)


def test_a_row_draws_the_same_in_any_batch():
    alone, _ = draws({}, count=50, rows=1)
    beside, _ = draws({}, count=50, rows=3)
    np.testing.assert_array_equal(alone[0], beside[0])
    assert (beside[1] != beside[0]).any()
    other, _ = draws({}, count=50, rows=1, seed=1)
    assert (other != alone).any()


def test_beam_samples_are_drawn_without_replacement():
    """The first two of a row's four candidates, as an ordered pair: p(a) * p(b) / (1 - p(a))."""
    rows, table = 20_000, random_table(12, 1.0)
    r = search_params(3, rng=jax.random.key(0), eos=(), length_penalty=0.0)
    given = source([(3, 4, 5)] * rows)

    @jax.jit
    def first_beams(table):
        # After one choice the running beams are the first two drawn, since none of them ends.
        strategy = BeamSearch(2, do_sample=True)
        return decode_loop.prefill(strategy, markov(table), NoCache(), given, prompt(rows), 4, r).state

    state = first_beams(table)
    pairs = np.asarray(state.sequences)[:, :, 1]
    p = np.exp(table[0, START].astype(np.float64))
    sorted_pairs = np.sort(pairs, axis=1)
    # Running beams are the two best of the four that were drawn; count sets of four by what is left out instead.
    assert (sorted_pairs[:, 0] != sorted_pairs[:, 1]).all()
    exact = np.zeros((VOCAB, VOCAB))
    for drawn in itertools.permutations(range(VOCAB), 4):
        probability, left = 1.0, 1.0
        for token in drawn:
            probability, left = probability * p[token] / left, left - p[token]
        best = sorted(drawn, key=lambda token: -p[token])[:2]
        exact[best[0], best[1]] += probability
    observed = np.zeros((VOCAB, VOCAB))
    np.add.at(observed, (pairs[:, 0], pairs[:, 1]), 1)
    inside = exact > 0
    assert (observed[~inside] == 0).all()
    chi2 = (((observed - rows * exact) ** 2)[inside] / (rows * exact[inside])).sum()
    assert chi2 < 40.0, (observed, rows * exact)  # at most 5 degrees of freedom and a wide margin
