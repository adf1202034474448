"""Scores of outputs against references: ROUGE by rouge-score; BLEU and chrF by sacrebleu."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from seq2seq_jax.config import METRICS, nearest


def rouge(predictions: Sequence[str], references: Sequence[str], *, use_stemmer: bool = True) -> dict[str, float]:
    """Mean F1 of each ROUGE type, 0 to 100."""
    scorer = RougeScorer(list(METRICS["rouge"]), use_stemmer=use_stemmer)
    rows = [scorer.score(reference, prediction) for prediction, reference in zip(predictions, references)]
    return {name: 100 * sum(row[name].fmeasure for row in rows) / len(rows) for name in METRICS["rouge"]}


def bleu(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU (sacrebleu's defaults: 13a tokens, cased), 0 to 100."""
    return {"bleu": sacrebleu.corpus_bleu(list(predictions), [list(references)]).score}


def chrf(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Corpus chrF2, 0 to 100."""
    return {"chrf": sacrebleu.corpus_chrf(list(predictions), [list(references)]).score}


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The share of outputs that are their reference, outer spaces aside, 0 to 100."""
    equal = [prediction.strip() == reference.strip() for prediction, reference in zip(predictions, references)]
    return {"exact_match": 100 * sum(equal) / len(equal)}


FUNCTIONS: dict[str, Callable[..., dict[str, float]]] = {
    "bleu": bleu,
    "chrf": chrf,
    "exact_match": exact_match,
    "rouge": rouge,
}


def score(predictions: Sequence[str], references: Sequence[str], metrics: Sequence[str]) -> dict[str, float]:
    """All scores of the named metrics (`METRICS`), in their order.

    Raises:
      ValueError: for an unknown metric, or if the lists differ in length, are empty, or hold no reference with a word.
    """
    for name in metrics:
        if name not in FUNCTIONS:
            raise ValueError(f"metric {name!r} is unknown: {nearest(name, FUNCTIONS)}")
    if len(predictions) != len(references):
        raise ValueError(f"there are {len(predictions)} predictions and {len(references)} references; give one for one")
    if not any(reference.strip() for reference in references):
        raise ValueError("all references are empty, so there is nothing to score; check data.target_field")
    scores: dict[str, float] = {}
    for name in metrics:
        scores |= FUNCTIONS[name](predictions, references)
    return scores
