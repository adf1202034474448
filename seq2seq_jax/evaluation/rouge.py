"""ROUGE, by Google's rouge-score package."""

from __future__ import annotations

from collections.abc import Sequence

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(predictions: Sequence[str], references: Sequence[str], *, use_stemmer: bool = True) -> dict[str, float]:
    """Mean F1 of each ROUGE type, 0 to 100.

    Raises:
      ValueError: if the lists differ in length, are empty, or hold no reference with a word.
    """
    if len(predictions) != len(references):
        raise ValueError(f"there are {len(predictions)} predictions and {len(references)} references; give one for one")
    if not any(reference.strip() for reference in references):
        raise ValueError("all references are empty, so there is nothing to score; check data.target_field")
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise ImportError("ROUGE needs the package rouge-score: pip install 'seq2seq_jax[quickstart]'") from None
    scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=use_stemmer)
    rows = [scorer.score(reference, prediction) for prediction, reference in zip(predictions, references)]
    return {name: 100 * sum(row[name].fmeasure for row in rows) / len(rows) for name in ROUGE_TYPES}
