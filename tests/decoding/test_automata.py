"""Tries, stop strings and constraints: small cases worked out by hand, and brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models

from seq2seq_jax.config import GenerationConfig
from seq2seq_jax.decoding.automata import AhoCorasick, StopStrings, TokenTrie
from seq2seq_jax.decoding.build_processors import build_automata, build_criteria
from seq2seq_jax.decoding.context import DecodingContext
from seq2seq_jax.decoding.vocabulary import token_texts
from tests.decoding.jitted import jitted


class Backed:
    def __init__(self, *tokens, special=()):
        self.backend = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, []))
        self.backend.decoder = decoders.ByteLevel()


begin = jitted(lambda automaton, prompt: automaton.initial_states(prompt))
after = jitted(lambda automaton, states, tokens: automaton.next_states(states, tokens))
next_tokens = jitted(lambda trie, states: trie.allowed(states))


def read(automaton, rows):
    """The states after each of rows [batch, length], the first of which is the prompt: a list of [batch]."""
    rows = np.asarray(rows, np.int32)
    states = [begin(automaton, rows[:, :1])]
    for tokens in rows.T[1:]:
        states.append(after(automaton, states[-1], tokens))
    return states


def allowed(trie, state):
    ids = np.asarray(next_tokens(trie, state))
    return [sorted(row[row < 2**31 - 1].tolist()) for row in np.atleast_2d(ids)]


def test_trie():
    trie = TokenTrie.from_sequences([[5, 6], [5, 7, 8], [5], [3, 1], [3, 1]], end=1)
    start, *states = read(trie, [[9, 5, 6, 1, 0], [9, 5, 7, 8, 1], [9, 3, 1, 4, 1], [9, 4, 5, 1, 1]])
    assert allowed(trie, start) == [[3, 5]] * 4
    # A sequence that is the beginning of another may end; one outside may only end.
    assert allowed(trie, states[0]) == [[1, 6, 7], [1, 6, 7], [1], [1]]
    assert allowed(trie, states[1]) == [[1], [8], [], [1]]
    assert allowed(trie, states[2]) == [[], [1], [], []]
    assert allowed(trie, states[3]) == [[], [], [], []]


def test_trie_without_ends():
    trie = TokenTrie.from_sequences([[5, 6], [5]], end=None)
    start, *states = read(trie, [[9, 5, 6], [9, 4, 6]])
    assert [allowed(trie, s) for s in (start, *states)] == [[[5], [5]], [[6], []], [[], []]]


def test_trie_of_each_row():
    trie = TokenTrie.from_rows([[[5]], [[6], [7, 8]]], end=(1, 2))
    start, end = read(trie, [[9, 5], [9, 7]])
    assert allowed(trie, start) == [[5], [6, 7]] and allowed(trie, end) == [[1, 2], [8]]
    with pytest.raises(ValueError, match="row 1 of the allowed sequences"):
        TokenTrie.from_rows([[[5]], []], end=1)
    with pytest.raises(ValueError, match="2 rows"):
        trie.initial_states(jnp.zeros((3, 1), int))


def test_trie_is_all_its_sequences():
    rng = np.random.default_rng(0)
    sequences = [tuple(rng.integers(3, 40, rng.integers(1, 6)).tolist()) for _ in range(300)]
    trie = TokenTrie.from_sequences(sequences, end=1)
    prefixes = {s[:n] for s in sequences for n in range(len(s))}
    rows = np.array([[0, *s, *[0] * (5 - len(s))] for s in sequences])
    for length, states in enumerate(read(trie, rows)):
        for row, got in list(zip(sequences, allowed(trie, states)))[:60]:
            if length > len(row):
                continue
            known = row[:length]
            expected = {s[length] for s in sequences if s[:length] == known and len(s) > length}
            assert got == sorted(expected | ({1} if known in set(sequences) else set())), known
    assert len(prefixes) < trie.offsets.shape[0] <= 4 * len(prefixes)
    other = TokenTrie.from_sequences([[43 - token for token in s] for s in sequences], end=1)
    assert jax.tree.map(np.shape, other) == jax.tree.map(np.shape, trie), "another trie would compile"


def test_stop_strings():
    tokenizer = Backed("st", "op", "s", "t", "o", "p", "stop", "opera", "tion", "las", "topper", "Ġ", "at")
    ids = {token: tokenizer.backend.token_to_id(token) for token in tokenizer.backend.get_vocab()}
    # From the docstring of torch's StopStringCriteria; with the tokens after which a text is to stop.
    cases = {
        "st op at": [1], "stop at": [0], "st opera tion": [1], "las topper": [1], "s t op": [2], "st o Ġ p": [],
        "s topper st op": [1, 3], "s st op": [2], "o p st o": [],
    }  # fmt: skip
    for strings in ("stop", ["stop"], ["stop", "zzz"]):
        automaton = StopStrings.from_strings(strings, tokenizer)
        for text, expected in cases.items():
            states = read(automaton, [[ids["o"], *(ids[token] for token in text.split())]])[1:]
            assert [i for i, s in enumerate(states) if StopStrings.accepts(s)[0]] == expected, text
    # What stands in the prompt counts as a beginning, not as an end.
    start, end = read(automaton, [[ids["s"], ids["topper"]]])
    assert not StopStrings.accepts(start)[0] and StopStrings.accepts(end)[0]
    # Ids that the tokenizer does not know break the text.
    assert not StopStrings.accepts(read(automaton, [[ids["s"], 99, ids["topper"]]])[-1])[0]


def test_stop_strings_by_search():
    """Against the text itself, where bytes make characters."""
    tokenizer = Backed(*"ab", "Ġ", "ab", "Ġa", "Ã", "©", "aÃ", "©b", "Ã©")
    texts, rng = token_texts(tokenizer), np.random.default_rng(0)
    rows = rng.integers(0, len(texts), (300, 9))
    for strings in (["é"], ["ab ", "bé"], ["aa", "aab", "a a"], [" éb", "ba"]):
        for length, states in list(enumerate(read(StopStrings.from_strings(strings, tokenizer), rows), 1))[1:]:
            for row, got in zip(rows, np.asarray(StopStrings.accepts(states))):
                text, last = b"".join(texts[i] for i in row[:length]), len(texts[row[length - 1]])
                ends = [text.find(s.encode(), max(0, len(text) - last - len(s.encode()) + 1)) for s in strings]
                assert got == (max(ends) >= 0), text


def test_stop_strings_that_cannot_be():
    with pytest.raises(ValueError, match="stop_strings"):
        StopStrings.from_strings(["xyz"], Backed("a", "b"))
    with pytest.raises(ValueError, match="stop_strings"):
        build_automata(GenerationConfig(stop_strings="a"), vocab_size=9, eos=(1,))


def test_stop_strings_from_settings():
    config, tokenizer = GenerationConfig(stop_strings=["ab"]), Backed("a", "b")
    automaton = build_automata(config, vocab_size=2, eos=(), tokenizer=tokenizer)["stop"]
    assert automaton is build_automata(config, vocab_size=2, eos=(), tokenizer=tokenizer)["stop"]
    (criterion,) = build_criteria(config)
    states = read(automaton, [[0, 1], [1, 0]])[-1]
    context = DecodingContext(
        jnp.zeros((1, 2, 4), int), 2, 1, jnp.zeros((1, 1), int), jnp.ones((1, 1), bool), {"stop": states[None]}
    )
    assert criterion(context).tolist() == [[True, False]]
    assert build_criteria(GenerationConfig()) == () and build_automata(GenerationConfig(), vocab_size=2, eos=()) == {}


def contains(row, phrase):
    return any(tuple(row[i : i + len(phrase)]) == tuple(phrase) for i in range(len(row)))


def test_constraints():
    constraints = [[[1, 2]], [[2, 1, 1], [3]], [[2]], [[1, 1, 2, 1]]]
    automaton = AhoCorasick.from_phrases(constraints)
    assert automaton.alphabet.tolist() == [1, 2, 3] and automaton.constraints == 4
    rows = np.array(list(itertools.product(range(5), repeat=5)))
    for length, states in enumerate(read(automaton, rows), 1):
        expected = [
            [any(contains(row[:length], phrase) for phrase in phrases) for phrases in constraints] for row in rows
        ]
        met = np.asarray(states.met)[:, None] >> np.arange(4) & 1
        np.testing.assert_array_equal(met, expected)
        np.testing.assert_array_equal(states.count, np.sum(expected, axis=1))
    start = AhoCorasick.from_phrases([[[1, 2, 3]], [[1, 2, 2, 4], [5]]])
    far = [int(start.progress(states)[0]) for states in read(start, [[1, 2, 2, 9, 1, 2, 3, 1, 5]])]
    assert far == [1, 2, 3, 0, 1, 2, 3, 4, 4]
    # Tokens beyond all of them are like any other.
    assert read(automaton, [[1, 900, 2]])[-1].met.tolist() == [4]


def test_constraints_from_settings():
    config = GenerationConfig(force_words_ids=[[1, 2], [[3], [4, 5]]])
    automaton = build_automata(config, vocab_size=9, eos=())["constraints"]
    assert read(automaton, [[1, 2, 4], [3, 4, 5]])[-1].met.tolist() == [1, 2]
    with pytest.raises(ValueError, match="force_words_ids"):
        build_automata(config, vocab_size=5, eos=())
    for wrong in ([], [[[1]]] * 33, [[[1], []]], [[]]):
        with pytest.raises(ValueError, match="constraints"):
            AhoCorasick.from_phrases(wrong)
