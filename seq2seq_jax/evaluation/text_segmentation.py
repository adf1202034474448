"""Splits texts of any script into words and sentences, for ROUGE."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import regex

# Scripts without spaces between words: each letter, with its marks, counts as a word.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORDS = regex.compile(rf"(?V1)[[{_UNSPACED}]&&\p{{L}}]\p{{M}}*|[\p{{L}}\p{{M}}\p{{N}}--[[{_UNSPACED}]&&\p{{L}}]]+")
_JOINERS = str.maketrans("", "", "\u200c\u200d")
_LETTERS = regex.compile(r"\p{L}")
_UNSPACED_LETTERS = regex.compile(rf"(?V1)[[{_UNSPACED}]&&\p{{L}}]")
_BEYOND_A_TO_Z = regex.compile(r"(?V1)[\p{L}--[a-z]]")

# The ends of sentences, with closing quotes and brackets: those that need a space behind them, and those that do not.
_CLOSING = r"[\p{Pe}\p{Pf}\"'’”]*"
_ENDS = regex.compile(rf"(?P<end>[.!?…؟۔।॥։።]+{_CLOSING})\s+|(?P<end>[。！？｡]+{_CLOSING})\s*")
# The beginning of a sentence, and abbreviations, whose full stop is no end.
_BEGINS = regex.compile(r"[\p{Ps}\p{Pi}\"'‘“¿¡—–-]*\s*[\p{Lu}\p{Lt}\p{Lo}\p{N}]")
_ABBREVIATED = regex.compile(
    r"(?:^|[\s\p{Ps}\p{Pi}\"'])(?:\p{Lu}|(?:\p{L}\.)+\p{L}"
    r"|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Gen|Col|Lt|Sgt|Capt|Sen|Rep|Gov|Rev|Hon|Mt|Fig|Figs|Eq|No|Nos|Vol|Inc|Ltd|Co|Corp"
    r"|vs|cf|al|etc|approx|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept|Sep|Oct|Nov|Dec|Nr|Bd|bzw|ca|vgl|Mme|Mlle|Sra)\.$"
)


def split_words(text: str) -> list[str]:
    """Runs of letters, marks and digits of any script, in lower case and composed (NFC).

    Of scripts that put no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each letter is a word of
    its own, with its marks. Zero-width joiners are dropped.
    """
    return _WORDS.findall(unicodedata.normalize("NFC", text.lower().translate(_JOINERS)))


def split_sentences(text: str) -> list[str]:
    """The sentences of a text: its lines if it has several, else by a simple rule.

    A sentence ends with a full stop, question or exclamation mark and what closes behind it, before a space and a
    capital, a digit, or a letter of a script without capitals; not behind an initial or a common abbreviation.
    """
    text = text.strip()
    if "\n" in text:
        return [line for line in text.split("\n") if line.strip()]
    sentences, begin = [], 0
    for match in _ENDS.finditer(text):
        last = text[begin : match.end("end")]
        spaced = match[0] != match["end"] or not regex.match("[。！？｡]", match["end"])
        if spaced and (not _BEGINS.match(text, match.end()) or _ABBREVIATED.search(last)):
            continue
        sentences.append(last)
        begin = match.end()
    return [sentence for sentence in (*sentences, text[begin:]) if sentence.strip()]


def fraction_beyond_a_to_z(texts: Sequence[str]) -> float:
    """The fraction of all letters that rouge-score's tokenizer, which knows a to z, drops."""
    letters, beyond = (sum(len(p.findall(text.lower())) for text in texts) for p in (_LETTERS, _BEYOND_A_TO_Z))
    return beyond / letters if letters else 0.0


def fraction_unspaced(texts: Sequence[str]) -> float:
    """The fraction of all letters that are of scripts without spaces between words."""
    letters, unspaced = (sum(len(p.findall(text)) for text in texts) for p in (_LETTERS, _UNSPACED_LETTERS))
    return unspaced / letters if letters else 0.0


def fraction_of_texts_beyond_a_to_z(texts: Sequence[str]) -> float:
    """The fraction of the texts of which rouge-score's tokenizer drops a letter."""
    return sum(bool(_BEYOND_A_TO_Z.search(text.lower())) for text in texts) / len(texts)
