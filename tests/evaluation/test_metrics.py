import pytest

from seq2seq_jax.evaluation.metrics import rouge, score


def test_rouge_by_hand():
    scores = rouge(["the cat sat", "a b"], ["the cat sat down", "c d"])
    # rouge1: precision 3/3, recall 3/4, F1 6/7; the second pair shares nothing.
    assert scores["rouge1"] == pytest.approx(100 * (6 / 7) / 2)
    # rouge2: precision 2/2, recall 2/3, F1 4/5.
    assert scores["rouge2"] == pytest.approx(100 * (4 / 5) / 2)
    assert scores["rougeL"] == pytest.approx(100 * (6 / 7) / 2)
    assert rouge(["runs"], ["running"])["rouge1"] == pytest.approx(100)
    assert rouge(["runs"], ["running"], use_stemmer=False)["rouge1"] == 0


def test_all():
    scores = score(["a b c d e", "x"], ["a b c d e", "y"], ["exact_match", "bleu", "chrf"])
    assert list(scores) == ["exact_match", "bleu", "chrf"] and scores["exact_match"] == 50
    # 5 of 6, 4 of 4, 3 of 3, 2 of 2 n-grams; no brevity penalty.
    assert scores["bleu"] == pytest.approx(100 * (5 / 6) ** 0.25) and 50 < scores["chrf"] < 100


def test_nothing_to_score():
    with pytest.raises(ValueError, match="there are 1 predictions and 2 references"):
        score(["a"], ["a", "b"], ["rouge"])
    with pytest.raises(ValueError, match="all references are empty"):
        score(["a"], [" "], ["rouge"])
    with pytest.raises(ValueError, match="metric 'rogue' is unknown: did you mean 'rouge'"):
        score(["a"], ["a"], ["rogue"])
