"""Tokenizes the beginning (or the end) of a very long text without tokenizing all of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import tokenizers

# The first cut of a text has so many characters for each wanted token; later cuts are GROWTH times as long.
CHARACTERS_PER_TOKEN = 16
GROWTH = 4
# The second cut is longer by so many characters: a prime, since cuts at the ends of a repeated unit often give the same
# tokens.
BEYOND = 1009
# No token of any vocabulary has so many characters. So a run with more characters for each wanted token gives enough
# tokens, or the tokenizer treats all of it as one: spaces that it drops, or an unknown word.
LONGEST_TOKEN = 512
# A run is shortened by a multiple of this (of 1 to 12, 16 and 32), so that tokens of several equal characters, counted
# from its end, fall where they fell.
PERIOD = 110_880
_RUNS = re.compile(r"\s+|[A-Za-z0-9]+|(.)\1*", re.S)


def is_long(text: str, wanted: int) -> bool:
    """Whether a text is so long that cutting it before tokenizing saves time."""
    return len(text) > 4 * CHARACTERS_PER_TOKEN * wanted


def tokenize_long(
    tokenize: Callable[[Sequence[str]], list[tokenizers.Encoding]], text: str, wanted: int, truncation_side: str
) -> tokenizers.Encoding:
    """At least the first `wanted` tokens of a text (the last ones, if truncation_side is "left").

    A shorter and a longer cut of the text are tokenized. If they agree in the wanted tokens, these do not depend on
    where the cut ends, and are the tokens of the whole text; otherwise both cuts grow, up to the whole text.

    Args:
      tokenize: without special tokens.
    """
    of_begin = truncation_side == "right"
    kept = slice(None, wanted) if of_begin else slice(-wanted, None)
    size = CHARACTERS_PER_TOKEN * wanted
    while True:
        cut, is_whole = _cut(text, size + BEYOND, LONGEST_TOKEN * wanted, of_begin)
        if is_whole:
            return tokenize([cut])[0]
        shorter, longer = tokenize([cut[:size] if of_begin else cut[-size:], cut])
        if min(len(shorter), len(longer)) > wanted and shorter.ids[kept] == longer.ids[kept]:
            return longer
        size *= GROWTH


def _cut(text: str, size: int, run: int, of_begin: bool) -> tuple[str, bool]:
    """The first (or last) `size` characters, with runs longer than `run` shortened; and whether the text ends there."""
    if size <= run:
        return (text[:size] if of_begin else text[-size:]), len(text) <= size
    text = text if of_begin else text[::-1]
    parts, length = [], 0
    for match in _RUNS.finditer(text):
        begin, end = match.span()
        parts.append(text[begin : end - max(0, end - begin - run) // PERIOD * PERIOD])
        length += len(parts[-1])
        if length > size:
            break
    cut = "".join(parts)[:size]
    return (cut if of_begin else cut[::-1]), length <= size
