"""Words and sentences of many scripts, against what a reader of each would say."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from seq2seq_jax.evaluation.text_segmentation import split_sentences, split_words


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Größe für ÄPFEL, 3,50 €", ["größe", "für", "äpfel", "3", "50"]),
        (unicodedata.normalize("NFD", "Größe"), ["größe"]),
        ("Это хорошая книга.", ["это", "хорошая", "книга"]),
        ("पूर्व प्रधानमन्त्री शिंजो", ["पूर्व", "प्रधानमन्त्री", "शिंजो"]),
        ("今天天气很好，我们", ["今", "天", "天", "气", "很", "好", "我", "们"]),
        ("東京2020でABC", ["東", "京", "2020", "で", "abc"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("안녕하세요 세계", ["안녕하세요", "세계"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("مرحبا، يا عالم", ["مرحبا", "يا", "عالم"]),
        ("don't x_1 \n—!", ["don", "t", "x", "1"]),
        ("", []),
    ],
)
def test_words(text, expected):
    assert split_words(text) == expected


@given(st.text(st.characters(max_codepoint=127)))
def test_words_of_ascii_are_those_of_rouge_score(text):
    assert split_words(text) == DefaultTokenizer(use_stemmer=False).tokenize(text)


@pytest.mark.parametrize(
    "expected",
    [
        ["Mr. Smith met Dr. J. R. Jones at 5 p.m. on Friday.", '"Why?" he asked.', "It cost $3.50 (a lot)."],
        ["The U.S. team won.", "It was the 3.2 release!", "“Really?”", "Yes."],
        ['He said "stop."', "Then he left…", "(Nobody saw him.)", "2019 was over."],
        ["Prices rose 2.5 percent vs. May, Acme Inc. said.", "See Fig. 3 for details."],
        ["Das Haus (z.B. 3.5 m) ist ca. 4 m hoch.", "Ärzte sind da.", "Übrigens: e.g. so."],
        ["¿Qué pasa?", "¡Nada!", "Él se fue."],
        ["Это книга.", "Она хорошая!", "Да?"],
        ["वह घर गया।", "उसने खाना खाया।"],
        ["هل أنت هنا؟", "نعم أنا هنا."],
        ["one sentence without an end"],
    ],
)
def test_sentences_with_spaces_between(expected):
    assert split_sentences(" ".join(expected)) == expected
    assert split_sentences("\n".join(expected) + "\n") == expected


@pytest.mark.parametrize("expected", [["今天天气很好。", "“我们去公园玩！”", "好吗？"], ["これはペンです。", "はい。"]])
def test_sentences_without_spaces_between(expected):
    assert split_sentences("".join(expected)) == expected


def test_lines_are_sentences():
    assert split_sentences("A b. C d\n\n e. F\n") == ["A b. C d", " e. F"]
    assert split_sentences("") == split_sentences(" \n ") == []
