"""Diverse, constrained and contrastive search, prompt lookup, and penalties, against plain definitions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.decoding.automata import AhoCorasick
from seq2seq_jax.decoding.beam_search import BeamSearch
from seq2seq_jax.decoding.constrained_beam_search import ConstrainedBeamSearch, allocate_beams
from seq2seq_jax.decoding.contrastive_search import ContrastiveSearch
from seq2seq_jax.decoding.diverse_beam_search import DiverseBeamSearch
from seq2seq_jax.decoding.prompt_lookup import PromptLookup
from seq2seq_jax.decoding.sampling import Sampling
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


def found(strategy, table, r, given=None, **model):
    run = jax.jit(
        lambda table, r: run_search(
            strategy, markov(table, **model), NoCache(), given or source(), prompt(), CAPACITY, r
        )
    )
    return {name: np.asarray(array)[0] for name, array in run(table, r).items()}


def all_sequences(table, max_length, vocab=VOCAB):
    """Every finished sequence and its log-probability."""
    whole = {}
    for tail in itertools.product(range(vocab), repeat=max_length - 1):
        tail = tail[: tail.index(EOS) + 1] if EOS in tail else tail
        tokens = (START, *tail)
        whole[tokens] = sum(float(table[t, a, b]) for t, (a, b) in enumerate(itertools.pairwise(tokens)))
    return whole


def stripped(row):
    """A row of ids without the pads behind its end."""
    row = row.tolist()
    return tuple(row[: row.index(EOS) + 1]) if EOS in row else tuple(row)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 5.0])
def test_groups_keep_off_each_others_tokens(penalty):
    """Groups of one beam without ends: each takes the best token after the penalty, in turn."""
    table, groups, length = random_table(21, 1.0), 3, 6
    got = found(DiverseBeamSearch(groups, groups), table, search_params(length, eos=(), diversity_penalty=penalty))
    paths, scores = [[START] for _ in range(groups)], [0.0] * groups
    for t in range(length - 1):
        used = np.zeros(VOCAB)
        for g in range(groups):
            options = table[t, paths[g][-1]] - np.float32(penalty) * used
            token = int(options.argmax())
            scores[g] += options[token]
            used[token] += 1
            paths[g].append(token)
    expected = sorted(zip([score / (length - 1) for score in scores], paths), key=lambda pair: -pair[0])
    for (score, path), row, mine in zip(expected, got["sequences"], got["scores"]):
        assert row[:length].tolist() == path
        assert mine == pytest.approx(score, rel=1e-4)
    if penalty == 5.0:
        assert len({tuple(path) for path in paths}) == groups
    assert got["beam_indices"][got["beam_indices"] >= 0].max() == groups - 1


def test_groups_without_penalty_are_beam_searches():
    table = random_table(22)
    groups = found(DiverseBeamSearch(4, 2), table, search_params(7, diversity_penalty=0.0))
    alone = found(BeamSearch(2), table, search_params(7))
    for i in range(2):
        np.testing.assert_array_equal(groups["sequences"][2 * i], alone["sequences"][i])
        np.testing.assert_array_equal(groups["sequences"][2 * i + 1], alone["sequences"][i])


CONSTRAINTS = {
    "word": [[[4]]],
    "phrase": [[[5, 3]]],
    "two": [[[4]], [[3, 5]]],
    "either": [[[5, 5], [3, 4, 3]], [[0]]],
}


@pytest.mark.parametrize("phrases", CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_constrained_search_finds_the_best_that_contains_all(phrases):
    max_length = 5
    automaton = {"constraints": AhoCorasick.from_phrases(phrases)}

    def contains(tokens):
        inside = lambda ids: any(tokens[i : i + len(ids)] == tuple(ids) for i in range(1, len(tokens)))
        return all(any(inside(ids) for ids in alternatives) for alternatives in phrases)

    strategy = ConstrainedBeamSearch(80, early_stopping="never")
    run = jax.jit(lambda t, r: run_search(strategy, markov(t), NoCache(), source(), prompt(), CAPACITY, r))
    for seed in range(5):
        table = random_table(seed)
        got = run(table, search_params(max_length, length_penalty=0.0, automata=automaton))
        right = {tokens: score for tokens, score in all_sequences(table, max_length).items() if contains(tokens)}
        best = max(right, key=right.get)
        row = np.asarray(got["sequences"])[0, 0]
        assert tuple(row[: len(best)]) == best and (row[len(best) :] == PAD).all()
        assert got["scores"][0, 0] == pytest.approx(right[best], rel=1e-4) and got["met"][0, 0]
        for tokens, met in zip(np.asarray(got["sequences"])[0], np.asarray(got["met"])[0]):
            assert not met or contains(stripped(tokens[:max_length]))


def test_few_beams_meet_an_unlikely_constraint():
    table = random_table(3)
    table[:, :, 5] -= 20.0
    automaton = {"constraints": AhoCorasick.from_phrases([[[5, 5]]])}
    got = found(ConstrainedBeamSearch(2), table, search_params(7, automata=automaton))
    assert got["met"][0] and (5, 5) in itertools.pairwise(got["sequences"][0].tolist())


def test_a_constraint_that_does_not_fit_is_told():
    automaton = {"constraints": AhoCorasick.from_phrases([[[5, 5, 5]]])}
    got = found(ConstrainedBeamSearch(2), random_table(3), search_params(3, automata=automaton))
    assert not got["met"].any() and (got["scores"] > -100).all()


def test_banks_take_turns():
    scores = jnp.array([[-1.0, -2.0, -3.0, -9.0, -8.0, -0.5]])
    banks = jnp.array([[0, 0, 0, 1, 1, 0]])
    free = jnp.array([[True, True, True, True, True, False]])
    assert allocate_beams(scores, banks, free, 4)[0].tolist() == [4, 0, 3, 1]


@pytest.mark.parametrize("alpha", [0.3, 0.8])
def test_contrastive_search_is_its_definition(alpha):
    table, k, length = random_table(31, 1.0), 3, CAPACITY
    states = np.random.default_rng(4).standard_normal((CAPACITY, VOCAB, 5)).astype(np.float32)
    got = found(ContrastiveSearch(k), table, search_params(length, penalty_alpha=alpha), states=states)
    unit = states / np.linalg.norm(states, axis=-1, keepdims=True)
    tokens, seen = [START], [unit[0, START]]
    while len(tokens) < length and (len(tokens) == 1 or tokens[-1] != EOS):
        probabilities = np.exp(table[len(tokens) - 1, tokens[-1]])
        tries = np.argsort(-probabilities)[:k]
        likeness = [max(float(unit[len(tokens), token] @ s) for s in seen) for token in tries]
        best = max(range(k), key=lambda i: (1 - alpha) * probabilities[tries[i]] - alpha * likeness[i])
        seen.append(unit[len(tokens), tries[best]])
        tokens.append(int(tries[best]))
    assert got["sequences"][0, : len(tokens)].tolist() == tokens
    assert (got["sequences"][0, len(tokens) :] == PAD).all()


def counting(step, calls):
    def counted(tokens, cache):
        jax.debug.callback(lambda: calls.append(1))
        return step(tokens, cache)

    return counted


@pytest.mark.parametrize("seed", range(4))
def test_prompt_lookup_is_greedy_search(seed):
    table = random_table(seed)
    greedy = found(Sampling(), table, search_params(CAPACITY - 2))
    ids = np.random.default_rng(seed).integers(0, VOCAB, (1, 12))
    guessed = found(PromptLookup(2, 2), table, search_params(CAPACITY - 2), given=source(ids))
    np.testing.assert_array_equal(guessed["sequences"], greedy["sequences"])


def test_prompt_lookup_copies():
    """A text that the source holds takes fewer steps."""
    table = np.full((CAPACITY, VOCAB, VOCAB), -9.0, np.float32)
    for a, b in itertools.pairwise([START, 3, 4, 5, 3, 5]):
        table[:, a, b] = -0.1
    table[2, 4, 5], table[3, 5, 4] = 1.0, 1.0
    calls = []
    given = source([[0, START, 3, 4, 5, 4, 5]])
    run = lambda strategy: run_search(
        strategy, counting(markov(table), calls), NoCache(), given, prompt(), CAPACITY, search_params(5)
    )
    greedy = np.asarray(run(Sampling())["sequences"])
    jax.effects_barrier()
    plain = len(calls)
    calls.clear()
    copied = np.asarray(run(PromptLookup(3, 2))["sequences"])
    jax.effects_barrier()
    np.testing.assert_array_equal(copied, greedy)
    assert plain == 4 and len(calls) == 2


def test_gnmt_length_and_coverage_penalties():
    """Wu et al. 2016, eq. 14, over all sequences: nothing is cut, so the best must come out."""
    max_length, vocab, alpha, beta = 4, 4, 0.9, 1.5
    strategy = BeamSearch(vocab ** (max_length - 2), early_stopping="never", use_coverage=True)
    r = search_params(max_length, gnmt_length_penalty=alpha, coverage_penalty=beta)
    attention = np.random.default_rng(2).dirichlet(np.ones(3), (CAPACITY, vocab)).astype(np.float32)
    run = jax.jit(
        lambda t, r: run_search(strategy, markov(t, attention=attention), NoCache(), source(), prompt(), CAPACITY, r)
    )
    differs = 0
    for seed in range(6):
        table = random_table(seed, 1.0, vocab=vocab)
        plain, scores = all_sequences(table, max_length, vocab), {}
        for tokens, score in plain.items():
            n = len(tokens) - 1
            # The choice of a token attends by the state of the one before.
            coverage = sum(attention[t, token] for t, token in enumerate(tokens[:-1]))
            scores[tokens] = score / ((5 + n) / 6) ** alpha + beta * np.log(np.minimum(coverage, 1.0)).sum()
        best = max(scores, key=scores.get)
        got = run(table, r)
        assert tuple(np.asarray(got["sequences"])[0, 0, : len(best)]) == best
        assert got["scores"][0, 0] == pytest.approx(scores[best], rel=1e-5)
        differs += max(plain, key=plain.get) != best
    assert differs, "the penalties never change the choice, so this shows nothing"
