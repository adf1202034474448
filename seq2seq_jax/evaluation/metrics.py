"""Metrics of outputs against references: ROUGE by rouge-score; BLEU and chrF by sacrebleu. Each with its signature: the
version and the settings that its scores depend on."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import NamedTuple

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from seq2seq_jax.config import BLEU_TOKENIZERS, METRICS, ROUGE_TOKENIZERS, nearest
from seq2seq_jax.evaluation.text_segmentation import (
    fraction_beyond_a_to_z,
    fraction_of_texts_beyond_a_to_z,
    fraction_unspaced,
    split_sentences,
    split_words,
)

# Packages that sacrebleu's tokenizers need beyond its own.
EXTRAS = {"ja-mecab": "pip install 'sacrebleu[ja]'", "ko-mecab": "pip install 'sacrebleu[ko]'"}
FLORES = "pip install sentencepiece; its model is fetched from the network once"


class MetricResults(NamedTuple):
    """scores: 0 to 100, by name. signatures: by metric; exact_match has none."""

    scores: dict[str, float]
    signatures: dict[str, str]


def compute_metrics(
    predictions: Sequence[str],
    references: Sequence[str],
    metrics: Sequence[str],
    *,
    rouge_tokenizer: str = "auto",
    bleu_tokenize: str = "13a",
) -> MetricResults:
    """The scores of the named metrics (`METRICS`), in their order, and their signatures.

    Warns of references whose letters or words the tokenizer does not know.

    Raises:
      ValueError: for an unknown metric or tokenizer, one whose packages are missing, or if the lists differ in length,
        are empty, or hold no reference with a word.
    """
    functions: dict[str, Callable[[], MetricResults]] = {
        "bleu": lambda: bleu(predictions, references, tokenize=bleu_tokenize),
        "chrf": lambda: chrf(predictions, references),
        "exact_match": lambda: exact_match(predictions, references),
        "rouge": lambda: rouge(predictions, references, tokenizer=rouge_tokenizer),
    }
    for name in metrics:
        if name not in functions:
            raise ValueError(f"metric {name!r} is unknown: {nearest(name, functions)}")
    if len(predictions) != len(references):
        raise ValueError(f"there are {len(predictions)} predictions and {len(references)} references; give one for one")
    if not any(reference.strip() for reference in references):
        raise ValueError("all references are empty, so there is nothing to score; check data.target_field")
    scores, signatures = {}, {}
    for name in metrics:
        results = functions[name]()
        scores |= results.scores
        signatures |= results.signatures
    return MetricResults(scores, signatures)


def score(
    predictions: Sequence[str], references: Sequence[str], metrics: Sequence[str], **tokenizers
) -> dict[str, float]:
    """`compute_metrics` without the signatures."""
    return compute_metrics(predictions, references, metrics, **tokenizers).scores


def check_tokenizers(metrics: Sequence[str], *, rouge_tokenizer: str = "auto", bleu_tokenize: str = "13a") -> None:
    """Raises ValueError if a tokenizer that the metrics need is unknown, or its packages are missing: before hours of
    training, not after."""
    if "bleu" in metrics:
        _bleu_metric(bleu_tokenize)
    if "rouge" in metrics:
        _rouge_tokenizer(rouge_tokenizer)


def bleu(predictions: Sequence[str], references: Sequence[str], *, tokenize: str = "13a") -> MetricResults:
    """Corpus BLEU (sacrebleu's, cased).

    Args:
      tokenize: sacrebleu's name of a tokenizer (`BLEU_TOKENIZERS`): 13a for languages with spaces between words, zh,
        ja-mecab and ko-mecab for theirs, char for any.

    Raises:
      ValueError: for an unknown tokenizer, or one whose packages are missing.
    """
    metric = _bleu_metric(tokenize)
    if tokenize in ("13a", "intl", "none") and fraction_unspaced(references) > 0.5:
        warnings.warn(
            f"BLEU: most letters of the references are of a script without spaces between words, and tokenizer"
            f" {tokenize!r} does not split it; give bleu_tokenize zh, ja-mecab or char",
            stacklevel=3,
        )
    result = metric.corpus_score(list(predictions), [list(references)]).score
    return MetricResults({"bleu": result}, {"bleu": metric.get_signature().format()})


def _bleu_metric(tokenize: str) -> BLEU:
    if tokenize not in BLEU_TOKENIZERS:
        raise ValueError(f"bleu_tokenize {tokenize!r} is unknown: {nearest(tokenize, BLEU_TOKENIZERS)}")
    try:
        return BLEU(tokenize=tokenize)
    except Exception as error:  # of sacrebleu, MeCab, sentencepiece, the network
        raise _missing("bleu_tokenize", tokenize) from error


def _missing(setting: str, name: str) -> ValueError:
    return ValueError(f"{setting} {name!r} needs more: {EXTRAS.get(name, FLORES)}; or give another, such as 'char'")


def chrf(predictions: Sequence[str], references: Sequence[str]) -> MetricResults:
    """Corpus chrF2."""
    metric = CHRF()
    result = metric.corpus_score(list(predictions), [list(references)]).score
    return MetricResults({"chrf": result}, {"chrf": metric.get_signature().format()})


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> MetricResults:
    """The percentage of outputs that equal their reference, outer spaces aside."""
    equal = [prediction.strip() == reference.strip() for prediction, reference in zip(predictions, references)]
    return MetricResults({"exact_match": 100 * sum(equal) / len(equal)}, {})


def rouge(predictions: Sequence[str], references: Sequence[str], *, tokenizer: str = "auto") -> MetricResults:
    """Mean F1 of each ROUGE type.

    rougeLsum compares sentence by sentence: the lines of a text that has several, as in the papers' data; else what
    `split_sentences` finds, where Hugging Face's scripts ask nltk. (rouge-score alone takes one line for one sentence,
    which makes rougeLsum and rougeL one.)

    Args:
      tokenizer: one for all texts: "rouge-score" (its own, which keeps a-z and 0-9 only, and stems English words),
        "unicode" (`split_words`), sacrebleu's "zh", "ja-mecab" or "char" of texts in lower case, or "auto":
        rouge-score's, so that English has the papers' figures, and "unicode" if most letters of the references are
        beyond a-z.

    Raises:
      ValueError: for an unknown tokenizer, or one whose packages are missing.
    """
    label, note = tokenizer, None
    if tokenizer == "auto":
        beyond = fraction_beyond_a_to_z(references)
        tokenizer = "unicode" if beyond > 0.5 else "rouge-score"
        label = f"{tokenizer} (auto)"
        if tokenizer == "unicode":
            note = f"{100 * beyond:.0f} % of the references' letters are beyond a-z, so Unicode words are compared"
    if tokenizer == "rouge-score" and (lossy := fraction_of_texts_beyond_a_to_z(references)) > 0.5:
        note = f"{100 * lossy:.0f} % of the references lose letters, since rouge-score's tokenizer knows a-z only"
    if note is not None:
        warnings.warn(f"ROUGE: {note}; rouge_tokenizer chooses another", stacklevel=3)
    options = {"use_stemmer": True, "tokenizer": _rouge_tokenizer(tokenizer)}
    *types, by_sentence = METRICS["rouge"]
    scorer, sentence_scorer = RougeScorer(types, **options), RougeScorer([by_sentence], **options)
    rows = [
        scorer.score(reference, prediction)
        | sentence_scorer.score(*("\n".join(split_sentences(text)) for text in (reference, prediction)))
        for prediction, reference in zip(predictions, references)
    ]
    scores = {name: 100 * sum(row[name].fmeasure for row in rows) / len(rows) for name in METRICS["rouge"]}
    stem, version = "porter" if tokenizer == "rouge-score" else "no", importlib.metadata.version("rouge-score")
    parts = ("nrefs:1", "case:lc", f"tok:{label}", f"stem:{stem}", "lsum:lines-or-sentences", f"rouge-score:{version}")
    return MetricResults(scores, {"rouge": "|".join(parts)})


def _rouge_tokenizer(name: str) -> SimpleNamespace | None:
    """rouge-score's argument `tokenizer`; None is its own."""
    if name not in ROUGE_TOKENIZERS:
        raise ValueError(f"rouge_tokenizer {name!r} is unknown: {nearest(name, ROUGE_TOKENIZERS)}")
    if name in ("auto", "rouge-score"):
        return None
    if name == "unicode":
        return SimpleNamespace(tokenize=split_words)
    try:
        split = BLEU(tokenize=name).tokenizer
    except Exception as error:  # of sacrebleu and MeCab
        raise _missing("rouge_tokenizer", name) from error
    return SimpleNamespace(tokenize=lambda text: split(text.lower()).split())
