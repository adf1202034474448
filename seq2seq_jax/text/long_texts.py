"""The first tokens of a text of any length, for the price of a short one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import tokenizers

# A text is first cut to so many characters for each token that is wanted, and to more if those give too few tokens.
CHARACTERS_PER_TOKEN = 16
GROWTH = 4
# Two cuts differ by so many characters: a prime, since a repeated unit is often cut alike wherever it is whole.
BEYOND = 1009
# No token of any vocabulary is so long. So a run of more characters for each token that is wanted gives enough tokens,
# or it is one for the tokenizer, however long: spaces that it drops, or a word that is unknown to it.
LONGEST_TOKEN = 512
# A run is shortened by a multiple of this (of 1 to 12, 16 and 32), so that tokens of several equal characters, counted
# from its end, fall where they fell.
PERIOD = 110_880
_RUNS = re.compile(r"\s+|[A-Za-z0-9]+|(.)\1*", re.S)


def is_long(text: str, wanted: int) -> bool:
    """Whether a text is worth cutting before it is tokenized."""
    return len(text) > 4 * CHARACTERS_PER_TOKEN * wanted


def tokenize_long(
    tokenize: Callable[[Sequence[str]], list[tokenizers.Encoding]], text: str, wanted: int, truncation_side: str
) -> tokenizers.Encoding:
    """The first `wanted` tokens of a text and some more (the last ones, if "left" is the side that loses tokens).

    Two cuts of the text are tokenized, of which one is longer. Where they agree in the tokens that are wanted, these do
    not depend on where the text ends, and are those of the whole text; else both grow, until the text is whole.

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
    """`size` characters of the text's begin or end, runs that are longer than `run` shortened; whether they are all."""
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
