import itertools
import statistics

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2seq_jax.inference.mbr import get_utility, minimum_bayes_risk

texts = st.lists(st.sampled_from(["a b c", "a b", "b a c d", "d", "", "a b c d e"]), min_size=1, max_size=6)


def overlap(hypothesis, reference):
    """Not symmetric: which is which matters."""
    return len(set(hypothesis) & set(reference)) - 0.3 * len(hypothesis)


def by_definition(candidates, utility):
    """Index of the greatest mean over all other draws; of equals the first."""
    if len(candidates) == 1:
        return 0
    means = [
        statistics.fmean(utility(candidates[i], candidates[j]) for j in range(len(candidates)) if j != i)
        for i in range(len(candidates))
    ]
    return next(i for i, mean in enumerate(means) if mean >= max(means) - 1e-9)


@pytest.mark.parametrize("utility", [overlap, "chrf", "bleu"])
@settings(max_examples=40)
@given(candidates=st.lists(texts, max_size=3))
def test_definition(utility, candidates):
    function = utility if callable(utility) else get_utility(utility)
    assert minimum_bayes_risk(candidates, utility) == [by_definition(each, function) for each in candidates]


def test_duplicates_count_as_often_as_drawn():
    # Without counting, "a b c d" agrees best with the two others; "x y" was drawn three times.
    assert minimum_bayes_risk([["a b c d", "x y", "a b c", "x y", "x y"]]) == [1]
    assert minimum_bayes_risk([["a b c d", "x y", "a b c"]]) == [0]


def test_named_utilities():
    pairs = list(itertools.product(["the cat sat", "cats sat down"], repeat=2))
    for name, function in (("chrf", sacrebleu.sentence_chrf), ("bleu", sacrebleu.sentence_bleu)):
        assert [get_utility(name)(*pair) for pair in pairs] == [function(h, [r]).score for h, r in pairs]
    # With the stemmer two of three words are common.
    assert get_utility("rougeL")(*pairs[1]) == pytest.approx(100 * 2 / 3)


def test_refusals():
    with pytest.raises(ValueError, match="utility 'rogueL' is unknown: did you mean 'rougeL'"):
        minimum_bayes_risk([["a"]], "rogueL")
    with pytest.raises(ValueError, match="text 1 has no candidates"):
        minimum_bayes_risk([["a"], []])
    with pytest.raises(ValueError, match="text 0: the utility of 'a' is no number"):
        minimum_bayes_risk([["a", "b"]], lambda hypothesis, reference: float("nan"))
