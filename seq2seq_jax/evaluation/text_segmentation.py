"""Words and sentences of any script, for ROUGE."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import regex

# Scripts that put no spaces between words: each letter, with the marks on it, stands for a word.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORDS = regex.compile(rf"(?V1)[[{_UNSPACED}]&&\p{{L}}]\p{{M}}*|[\p{{L}}\p{{M}}\p{{N}}--[[{_UNSPACED}]&&\p{{L}}]]+")
_JOINERS = str.maketrans("", "", "\u200c\u200d")
_LETTERS = regex.compile(r"\p{L}")
_UNSPACED_LETTERS = regex.compile(rf"(?V1)[[{_UNSPACED}]&&\p{{L}}]")
_LOST_LETTERS = regex.compile(r"(?V1)[\p{L}--[a-z]]")

# What ends a sentence, with the quotes and brackets that close behind it, where a space follows and where none need to.
_CLOSING = r"[\p{Pe}\p{Pf}\"'’”]*"
_ENDS = regex.compile(rf"(?P<end>[.!?…؟۔।॥։።]+{_CLOSING})\s+|(?P<end>[。！？｡]+{_CLOSING})\s*")
# What a sentence begins with, and what a full stop is no end behind.
_BEGINS = regex.compile(r"[\p{Ps}\p{Pi}\"'‘“¿¡—–-]*\s*[\p{Lu}\p{Lt}\p{Lo}\p{N}]")
_ABBREVIATED = regex.compile(
    r"(?:^|[\s\p{Ps}\p{Pi}\"'])(?:\p{Lu}|(?:\p{L}\.)+\p{L}"
    r"|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Gen|Col|Lt|Sgt|Capt|Sen|Rep|Gov|Rev|Hon|Mt|Fig|Figs|Eq|No|Nos|Vol|Inc|Ltd|Co|Corp"
    r"|vs|cf|al|etc|approx|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept|Sep|Oct|Nov|Dec|Nr|Bd|bzw|ca|vgl|Mme|Mlle|Sra)\.$"
)


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits of any script, in lower case and composed (NFC).

    Of scripts that put no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each letter is a word of
    its own, with the marks on it. Zero-width joiners count for nothing.
    """
    return _WORDS.findall(unicodedata.normalize("NFC", text.lower().translate(_JOINERS)))


def sentences(text: str) -> list[str]:
    """The sentences of a text: its lines, if it has several, and else what a simple rule finds.

    A sentence ends with a full stop, question or exclamation mark and what closes behind it, before a space and a
    capital, a digit, or a letter of a script without capitals; not behind an initial or a common abbreviation.
    """
    text = text.strip()
    if "\n" in text:
        return [line for line in text.split("\n") if line.strip()]
    found, begin = [], 0
    for match in _ENDS.finditer(text):
        last = text[begin : match.end("end")]
        spaced = match[0] != match["end"] or not regex.match("[。！？｡]", match["end"])
        if spaced and (not _BEGINS.match(text, match.end()) or _ABBREVIATED.search(last)):
            continue
        found.append(last)
        begin = match.end()
    return [sentence for sentence in (*found, text[begin:]) if sentence.strip()]


def share_lost(texts: Sequence[str]) -> float:
    """The share of all letters that rouge-score's tokenizer, which knows a to z, drops."""
    letters, lost = (sum(len(p.findall(text.lower())) for text in texts) for p in (_LETTERS, _LOST_LETTERS))
    return lost / letters if letters else 0.0


def share_unspaced(texts: Sequence[str]) -> float:
    """The share of all letters that are of scripts without spaces between words."""
    letters, unspaced = (sum(len(p.findall(text)) for text in texts) for p in (_LETTERS, _UNSPACED_LETTERS))
    return unspaced / letters if letters else 0.0


def share_with_lost(texts: Sequence[str]) -> float:
    """The share of the texts of which rouge-score's tokenizer drops a letter."""
    return sum(bool(_LOST_LETTERS.search(text.lower())) for text in texts) / len(texts)
