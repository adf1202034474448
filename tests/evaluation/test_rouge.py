import pytest

from seq2seq_jax.evaluation.rouge import rouge


def test_by_hand():
    pytest.importorskip("rouge_score")
    scores = rouge(["the cat sat", "a b"], ["the cat sat down", "c d"])
    # rouge1: precision 3/3, recall 3/4, F1 6/7; the second pair shares nothing.
    assert scores["rouge1"] == pytest.approx(100 * (6 / 7) / 2)
    # rouge2: precision 2/2, recall 2/3, F1 4/5.
    assert scores["rouge2"] == pytest.approx(100 * (4 / 5) / 2)
    assert scores["rougeL"] == pytest.approx(100 * (6 / 7) / 2)
    assert rouge(["runs"], ["running"])["rouge1"] == pytest.approx(100)
    assert rouge(["runs"], ["running"], use_stemmer=False)["rouge1"] == 0


def test_nothing_to_score():
    with pytest.raises(ValueError, match="there are 1 predictions and 2 references"):
        rouge(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="all references are empty"):
        rouge(["a"], [" "])
