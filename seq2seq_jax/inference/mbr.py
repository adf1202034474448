"""Minimum Bayes risk decoding: chooses, of several outputs of one text, the one that agrees best with the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from seq2seq_jax.config import nearest

# (hypothesis, reference) -> how good the hypothesis is if the reference is right; greater is better.
Utility = Callable[[str, str], float]


def minimum_bayes_risk(candidates: Sequence[Sequence[str]], utility: str | Utility = "chrf") -> list[int]:
    """For each text, the index of the candidate with the greatest mean utility against the others of that text.

    Meant for samples of the model: a candidate drawn twice counts twice, so the mean estimates the expected utility.
    Of candidates with equal means the first is chosen.

    Source: Eikema & Aziz 2020, https://arxiv.org/abs/2005.10283.

    Args:
      candidates: [texts][candidates]; each text has at least one.
      utility: a name of `UTILITIES` (sentence scores, 0 to 100), or a function of hypothesis and reference.

    Raises:
      ValueError: for an unknown name, a text without candidates, or a utility that is no number.
    """
    function = utility if callable(utility) else get_utility(utility)
    return [_choose(texts, function, number) for number, texts in enumerate(candidates)]


def get_utility(name: str) -> Utility:
    """The utility function of a name.

    Raises:
      ValueError: for an unknown name.
    """
    if name not in UTILITIES:
        raise ValueError(f"utility {name!r} is unknown: {nearest(name, UTILITIES)}")
    return UTILITIES[name]()


def _choose(texts: Sequence[str], utility: Utility, number: int) -> int:
    if not texts:
        raise ValueError(f"text {number} has no candidates; give at least one")
    counts = Counter(texts)
    best, chosen = -math.inf, texts[0]
    for hypothesis in counts if len(texts) > 1 else ():
        others = counts - Counter([hypothesis])
        values = {reference: utility(hypothesis, reference) for reference in others}
        # fsum does not depend on the order of the terms, which so breaks no ties.
        mean = math.fsum(values[reference] for reference in others.elements()) / (len(texts) - 1)
        if math.isnan(mean):
            raise ValueError(
                f"text {number}: the utility of {hypothesis!r} is no number; give one of {list(UTILITIES)}"
            )
        if mean > best:
            best, chosen = mean, hypothesis
    return texts.index(chosen)


def _chrf() -> Utility:
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    return lambda hypothesis, reference: metric.sentence_score(hypothesis, [reference]).score


def _bleu() -> Utility:
    from sacrebleu.metrics import BLEU

    metric = BLEU(effective_order=True)  # without it a sentence below 4 words scores 0
    return lambda hypothesis, reference: metric.sentence_score(hypothesis, [reference]).score


def _rouge_l() -> Utility:
    from rouge_score.rouge_scorer import RougeScorer  # here: it takes seconds to import

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return lambda hypothesis, reference: 100 * scorer.score(reference, hypothesis)["rougeL"].fmeasure


UTILITIES: dict[str, Callable[[], Utility]] = {"bleu": _bleu, "chrf": _chrf, "rougeL": _rouge_l}
