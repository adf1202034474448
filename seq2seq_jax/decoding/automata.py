"""Automata that read hypotheses token by token (`context.Automaton`), compiled into tables on the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from seq2seq_jax.decoding.context import DecodingContext
from seq2seq_jax.decoding.vocabulary import byte_table, cached_per_tokenizer, token_texts

_NONE = np.iinfo(np.int32).max


@struct.dataclass
class TokenTrie:
    """A trie of the sequences that may follow the prompt. States are its nodes, int32.

    Arrays are as long as the next power of two, so that another trie seldom compiles.

    Attributes:
      offsets: int32 [nodes + 1], where each node's edges begin.
      tokens, children: int32 [edges], sorted by token within a node.
      roots: int32 [batch], or a scalar for all rows.
      ended, lost: int32 scalars, the nodes of sequences that have ended (nothing may follow) and of those that are not
        in the trie (an end token may follow).
      width: the most edges of a node.
    """

    offsets: jax.Array
    tokens: jax.Array
    children: jax.Array
    roots: jax.Array
    ended: jax.Array
    lost: jax.Array
    width: int = struct.field(pytree_node=False)

    @classmethod
    def from_sequences(cls, sequences: Iterable[Sequence[int]], *, end: int | Sequence[int] | None) -> TokenTrie:
        """The trie of token sequences, the same for all rows.

        Args:
          sequences: of tokens after the prompt.
          end: end tokens, one of which is put behind each sequence that has none; None: nothing is.
        """
        trie = cls.from_rows([sequences], end=end)
        return trie.replace(roots=trie.roots[0])

    @classmethod
    def from_rows(cls, rows: Sequence[Iterable[Sequence[int]]], *, end: int | Sequence[int] | None) -> TokenTrie:
        """A trie for each row of a batch; see `from_sequences`."""
        ends = () if end is None else tuple(np.atleast_1d(end).tolist())
        paths = []
        for row, sequences in enumerate(rows):
            before = len(paths)
            for sequence in sequences:
                ids = [int(token) for token in sequence]
                tails = [[]] if not ends or (ids and ids[-1] in ends) else [[token] for token in ends]
                paths += [[row, *ids, *tail] for tail in tails if ids or tail]
            if len(paths) == before:
                raise ValueError(f"row {row} of the allowed sequences has none; give at least one with a token")
        return cls(*_trie_tables(paths, len(rows), sorted(set(ends))))

    @property
    def largest(self) -> int:
        """The largest token."""
        return int(np.max(self.tokens, where=np.asarray(self.tokens) < _NONE, initial=0))

    def initial_states(self, prompt: jax.Array, prompt_starts: jax.Array | None = None) -> jax.Array:
        rows = np.shape(self.roots)
        if rows not in ((), prompt.shape[:1]):
            raise ValueError(f"the trie of allowed tokens is for {rows[0]} rows and the batch has {prompt.shape[0]}")
        return jnp.broadcast_to(jnp.asarray(self.roots), prompt.shape[:1])

    def next_states(self, states: jax.Array, tokens: jax.Array) -> jax.Array:
        known, children = jnp.asarray(self.tokens), jnp.asarray(self.children)
        first, last = self._edges(states)

        def bisect(_, bounds):
            low, high = bounds
            middle = (low + high) // 2
            before = (middle < high) & (known[middle] < tokens)
            return jnp.where(before, middle + 1, low), jnp.where(before, high, middle)

        edge, _ = jax.lax.fori_loop(0, self.width.bit_length(), bisect, (first, last), unroll=True)
        in_trie = (edge < last) & (known[edge] == tokens)
        return jnp.where(in_trie, children[edge], jnp.where(states == self.ended, self.ended, self.lost))

    def allowed(self, states: jax.Array) -> jax.Array:
        """The tokens that may follow states [...], int32 [..., width], filled up with 2**31 - 1."""
        first, last = self._edges(states)
        edges = first[..., None] + jnp.arange(self.width)  # [..., width]
        return jnp.where(edges < last[..., None], jnp.asarray(self.tokens)[edges], _NONE)

    def _edges(self, states: jax.Array) -> tuple[jax.Array, jax.Array]:
        offsets = jnp.asarray(self.offsets)
        return offsets[states], offsets[states + 1]


def _trie_tables(sequences: list[list[int]], roots: int, ends: Sequence[int]) -> tuple:
    """The fields of a TokenTrie, from sequences whose first items are the numbers of their roots."""
    table = np.full((len(sequences), max(map(len, sequences))), -1, np.int64)
    for row, sequence in zip(table, sequences):
        row[: len(sequence)] = sequence
    table = table[np.lexsort(table.T[::-1])]
    node, nodes, edges = table[:, 0].copy(), roots, []
    for column in table.T[1:]:
        longer = np.flatnonzero(column >= 0)
        parents, tokens = node[longer], column[longer]
        is_new = np.ones(len(longer), bool)  # sequences are sorted, so equal edges are neighbours
        is_new[1:] = (parents[1:] != parents[:-1]) | (tokens[1:] != tokens[:-1])
        node[longer] = nodes + np.cumsum(is_new) - 1
        edges.append(np.stack([parents, tokens, node[longer]])[:, is_new])
        nodes += int(is_new.sum())
    parents, tokens, children = np.concatenate(edges, axis=1)
    # All leaves are one node, `ended`, behind the inner ones; behind it comes `lost`.
    inner = np.isin(np.arange(nodes), parents)
    number = np.cumsum(inner) - 1
    ended, lost = int(inner.sum()), int(inner.sum()) + 1
    parents = np.concatenate([number[parents], np.full(len(ends), lost)])
    children = np.concatenate([np.where(inner[children], number[children], ended), np.full(len(ends), ended)])
    offsets = np.searchsorted(parents, np.arange(lost + 2))
    width = int(np.diff(offsets).max())
    return (
        _filled(offsets, offsets[-1]),
        _filled(np.concatenate([tokens, ends]), _NONE),
        _filled(children, ended),
        np.arange(roots, dtype=np.int32),
        np.int32(ended),
        np.int32(lost),
        _power_of_two(width),
    )


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def _filled(array: np.ndarray, fill: int) -> np.ndarray:
    """int32 `array` as long as the next power of two."""
    out = np.full(_power_of_two(len(array)), fill, np.int32)
    out[: len(array)] = array
    return out


@struct.dataclass
class StopStrings:
    """Finds sequences whose text has one of some strings that ends within the last token (torch's StopStringCriteria).

    States are int32: the node that the text has reached, or -1 - node where a string has just ended.

    Attributes:
      table: int16 or int32 [nodes, tokens], the state after a token.
    """

    table: jax.Array

    @classmethod
    def from_strings(cls, strings: str | Iterable[str], tokenizer: Any) -> StopStrings:
        """Made once for a tokenizer and strings (Knuth-Morris-Pratt over the bytes of each token).

        Args:
          strings: not empty. tokenizer: has a `backend`, a tokenizers.Tokenizer.
        """
        strings = (strings,) if isinstance(strings, str) else tuple(strings)
        return cached_per_tokenizer(
            tokenizer, ("stop", strings), lambda: cls(_stop_table(strings, token_texts(tokenizer)))
        )

    def initial_states(self, prompt: jax.Array, prompt_starts: jax.Array | None = None) -> jax.Array:
        return _read_prompt(self, jnp.zeros(prompt.shape[:1], jnp.int32), prompt, prompt_starts)

    def next_states(self, states: jax.Array, tokens: jax.Array) -> jax.Array:
        nodes = jnp.where(states < 0, -1 - states, states)
        # Ids that are no tokens have no text that a string could go on with.
        return jnp.asarray(self.table).at[nodes, tokens].get(mode="fill", fill_value=0).astype(jnp.int32)

    @staticmethod
    def accepts(states: jax.Array) -> jax.Array:
        """bool, like states: where a string ends within the last token."""
        return states < 0


@struct.dataclass
class StopStringCriterion:
    """Ends sequences with a stop string. Reads context.automaton_states["stop"], the states of a StopStrings."""

    def __call__(self, context: DecodingContext) -> jax.Array:
        return StopStrings.accepts(context.automaton_states["stop"])


def _stop_table(strings: tuple[str, ...], texts: list[bytes]) -> np.ndarray:
    """int [nodes, tokens]; see StopStrings."""
    delta, alphabet, outputs = _aho_corasick([(list(string.encode()), 1) for string in strings])
    columns = np.zeros(256, np.int32)
    columns[alphabet] = np.arange(1, len(alphabet) + 1)
    codes, lengths = byte_table(texts)
    nodes = np.repeat(np.arange(len(delta), dtype=np.int32)[:, None], len(texts), axis=1)
    hits = np.zeros(nodes.shape, bool)
    for i in range(codes.shape[1]):
        longer = np.flatnonzero(lengths > i)  # the tokens with a byte i
        after = delta[nodes[:, longer], columns[codes[longer, i]]]
        nodes[:, longer] = after
        hits[:, longer] |= outputs[after] > 0
    if not hits.any():
        raise ValueError(f"stop_strings: no tokens of the tokenizer spell any of {list(strings)}; give others")
    table = np.where(hits, -1 - nodes, nodes)
    return table.astype(np.int16) if len(delta) <= 2**15 else table


@struct.dataclass
class ConstraintStates:
    """States of an AhoCorasick: node int32; met uint32, with a bit for each constraint that the sequence contains."""

    node: jax.Array
    met: jax.Array

    @property
    def count(self) -> jax.Array:
        """int32: how many constraints are met."""
        return jax.lax.population_count(self.met).astype(jnp.int32)


@struct.dataclass
class AhoCorasick:
    """Finds which of some constraints a sequence contains (Aho & Corasick 1975); for constrained beam search.

    Attributes:
      delta: int32 [nodes, alphabet + 1], the node after a token of the alphabet, or after another (column 0).
      columns: int32 [largest token + 1], each token's column of delta. alphabet: int32 [alphabet], its tokens.
      outputs: uint32 [nodes], the constraints that are met on arriving.
      prefix_lengths: int32 [nodes, constraints], how many tokens of a phrase of each constraint were read last.
      sizes: int32 [constraints], tokens of the shortest phrase of each.
      constraints: how many there are.
    """

    delta: jax.Array
    columns: jax.Array
    alphabet: jax.Array
    outputs: jax.Array
    prefix_lengths: jax.Array
    sizes: jax.Array
    constraints: int = struct.field(pytree_node=False)

    @classmethod
    def from_phrases(cls, phrases: Sequence[Sequence[Sequence[int]]]) -> AhoCorasick:
        """From constraints, each a list of token sequences of which one is to occur.

        Raises:
          ValueError: for more than 32 constraints, or empty sequences.
        """
        if not 1 <= len(phrases) <= 32:
            raise ValueError(f"there are {len(phrases)} constraints; give 1 to 32")
        patterns = [(list(ids), 1 << bit) for bit, alternatives in enumerate(phrases) for ids in alternatives]
        if not all(phrases) or not all(ids for ids, _ in patterns):
            raise ValueError(f"the constraints {[list(p) for p in phrases]} hold an empty phrase; take it out")
        delta, alphabet, outputs = _aho_corasick(patterns)
        columns = np.zeros(max(alphabet) + 1, np.int32)
        columns[alphabet] = np.arange(1, len(alphabet) + 1)
        prefix_lengths = np.zeros((len(delta), len(phrases)), np.int32)
        for read in {tuple(ids[:n]) for ids, _ in patterns for n in range(1, len(ids) + 1)}:
            node = 0
            for token in read:
                node = delta[node, columns[token]]
            for i, alternatives in enumerate(phrases):
                parts = [n for ids in alternatives for n in range(len(ids)) if read[len(read) - n :] == tuple(ids[:n])]
                prefix_lengths[node, i] = max(parts)
        sizes = np.array([min(map(len, alternatives)) for alternatives in phrases], np.int32)
        return cls(delta, columns, np.array(alphabet, np.int32), outputs, prefix_lengths, sizes, len(phrases))

    def progress(self, states: ConstraintStates) -> jax.Array:
        """The progress with the constraints, int32 like the states: tokens of those met, and of the one among the
        others of which most tokens were read."""
        met = (states.met[..., None] >> jnp.arange(self.constraints, dtype=jnp.uint32)) & 1  # [..., constraints]
        partial = jnp.max(jnp.where(met == 1, 0, jnp.asarray(self.prefix_lengths)[states.node]), axis=-1)
        return jnp.sum(jnp.where(met == 1, jnp.asarray(self.sizes), 0), axis=-1) + partial

    def initial_states(self, prompt: jax.Array, prompt_starts: jax.Array | None = None) -> ConstraintStates:
        zeros = jnp.zeros(prompt.shape[:1], jnp.int32)
        return _read_prompt(self, ConstraintStates(zeros, zeros.astype(jnp.uint32)), prompt, prompt_starts)

    def next_states(self, states: ConstraintStates, tokens: jax.Array) -> ConstraintStates:
        column = jnp.asarray(self.columns).at[tokens].get(mode="fill", fill_value=0)
        node = jnp.asarray(self.delta)[states.node, column]
        return ConstraintStates(node, states.met | jnp.asarray(self.outputs)[node])


def _aho_corasick(patterns: Iterable[tuple[list[int], int]]) -> tuple[np.ndarray, list[int], np.ndarray]:
    """The automaton of (symbols, bits) patterns.

    Returns:
      delta int32 [nodes, alphabet + 1], whose column 0 is for symbols outside the alphabet; the alphabet, sorted; and
      outputs uint32 [nodes], the bits of all patterns that end at a node.
    """
    patterns = list(patterns)
    alphabet = sorted({symbol for symbols, _ in patterns for symbol in symbols})
    column = {symbol: i for i, symbol in enumerate(alphabet, 1)}
    children, bits = [{}], [0]
    for symbols, bit in patterns:
        node = 0
        for symbol in symbols:
            if column[symbol] not in children[node]:
                children[node][column[symbol]] = len(children)
                children.append({})
                bits.append(0)
            node = children[node][column[symbol]]
        bits[node] |= bit
    delta = np.zeros((len(children), len(alphabet) + 1), np.int32)
    outputs = np.array(bits, np.uint32)
    queue = deque([(0, 0)])
    while queue:
        node, fail = queue.popleft()
        # `fail` is the node of the longest proper suffix, whose row is complete: it says where to go where the trie
        # does not.
        outputs[node] |= outputs[fail]
        delta[node] = delta[fail]
        for i, child in children[node].items():
            queue.append((child, delta[fail, i] if node else 0))
            delta[node, i] = child
    return delta, alphabet, outputs


def _read_prompt(automaton: Any, states: Any, prompt: jax.Array, prompt_starts: jax.Array | None) -> Any:
    """The states [batch] after the tokens of prompt [batch, p] from `prompt_starts` [batch] on (None: from 0)."""
    prompt_starts = jnp.zeros(prompt.shape[:1], jnp.int32) if prompt_starts is None else prompt_starts

    def read(states, step):
        position, tokens = step
        new = automaton.next_states(states, tokens)
        return jax.tree.map(lambda a, b: jnp.where(position >= prompt_starts, a, b), new, states), None

    return jax.lax.scan(read, states, (jnp.arange(prompt.shape[1]), prompt.T))[0]
