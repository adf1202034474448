"""Scores of outputs against references: ROUGE by rouge-score; BLEU and chrF by sacrebleu. Each with a signature, which
says all that its figures depend on, beside the texts."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import NamedTuple

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from seq2seq_jax.config import BLEU_TOKENIZERS, METRICS, ROUGE_TOKENIZERS, nearest

# Packages that sacrebleu's tokenizers need beyond its own.
EXTRAS = {"ja-mecab": "pip install 'sacrebleu[ja]'", "ko-mecab": "pip install 'sacrebleu[ko]'"}
FLORES = "pip install sentencepiece; its model is fetched from the network once"


class Measured(NamedTuple):
    """scores: 0 to 100, by name. signatures: of each metric that has settings."""

    scores: dict[str, float]
    signatures: dict[str, str]


def rouge(
    predictions: Sequence[str], references: Sequence[str], *, use_stemmer: bool = True, tokenizer: str = "auto"
) -> dict[str, float]:
    """Mean F1 of each ROUGE type, 0 to 100.

    rougeLsum compares sentence by sentence: a text's lines, if it has several, as the papers' data have them; else what
    `words.sentences` finds, where Hugging Face's scripts ask nltk. (rouge-score alone takes one line for one sentence,
    which makes rougeLsum and rougeL one.)

    Args:
      use_stemmer: whether rouge-score's tokenizer cuts English words to their stems (Porter); the others never do.
      tokenizer: one for all texts: "rouge-score" (its own, which keeps a-z and 0-9 only), "unicode" (`words.words`),
        sacrebleu's "zh", "ja-mecab" or "char" of texts in lower case, or "auto": rouge-score's, so that English has the
        papers' figures, and "unicode" if most letters of the references are beyond a-z.

    Raises:
      ValueError: for an unknown tokenizer, or one whose packages are missing.
    """
    return _rouge(predictions, references, use_stemmer, tokenizer).scores


def bleu(predictions: Sequence[str], references: Sequence[str], *, tokenize: str = "13a") -> dict[str, float]:
    """Corpus BLEU (sacrebleu's, cased), 0 to 100.

    Args:
      tokenize: sacrebleu's name of a tokenizer (`BLEU_TOKENIZERS`): 13a for languages with spaces between words, zh,
        ja-mecab and ko-mecab for theirs, char for any.

    Raises:
      ValueError: for an unknown tokenizer, or one whose packages are missing.
    """
    return _bleu(predictions, references, tokenize).scores


def chrf(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Corpus chrF2, 0 to 100."""
    return _chrf(predictions, references).scores


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The share of outputs that are their reference, outer spaces aside, 0 to 100."""
    equal = [prediction.strip() == reference.strip() for prediction, reference in zip(predictions, references)]
    return {"exact_match": 100 * sum(equal) / len(equal)}


def measure(
    predictions: Sequence[str],
    references: Sequence[str],
    metrics: Sequence[str],
    *,
    rouge_tokenizer: str = "auto",
    bleu_tokenize: str = "13a",
) -> Measured:
    """All scores of the named metrics (`METRICS`), in their order, and their signatures.

    Warns of references whose letters or words the tokenizer does not know.

    Raises:
      ValueError: for an unknown metric or tokenizer, one whose packages are missing, or if the lists differ in length,
        are empty, or hold no reference with a word.
    """
    functions: dict[str, Callable[[], Measured]] = {
        "bleu": lambda: _bleu(predictions, references, bleu_tokenize),
        "chrf": lambda: _chrf(predictions, references),
        "exact_match": lambda: Measured(exact_match(predictions, references), {}),
        "rouge": lambda: _rouge(predictions, references, True, rouge_tokenizer),
    }
    for name in metrics:
        if name not in functions:
            raise ValueError(f"metric {name!r} is unknown: {nearest(name, functions)}")
    if len(predictions) != len(references):
        raise ValueError(f"there are {len(predictions)} predictions and {len(references)} references; give one for one")
    if not any(reference.strip() for reference in references):
        raise ValueError("all references are empty, so there is nothing to score; check data.target_field")
    measured = Measured({}, {})
    for name in metrics:
        each = functions[name]()
        measured = Measured(measured.scores | each.scores, measured.signatures | each.signatures)
    return measured


def score(
    predictions: Sequence[str], references: Sequence[str], metrics: Sequence[str], **tokenizers: str
) -> dict[str, float]:
    """The scores of `measure`, which takes the same arguments."""
    return measure(predictions, references, metrics, **tokenizers).scores


def check_tokenizers(metrics: Sequence[str], *, rouge_tokenizer: str = "auto", bleu_tokenize: str = "13a") -> None:
    """Raises ValueError if a tokenizer that the metrics will need is unknown, or its packages are missing: to be known
    before hours of training, not after."""
    if "bleu" in metrics:
        _bleu_metric(bleu_tokenize)
    if "rouge" in metrics:
        _rouge_words(rouge_tokenizer)


def _bleu(predictions: Sequence[str], references: Sequence[str], tokenize: str) -> Measured:
    metric = _bleu_metric(tokenize)
    if tokenize in ("13a", "intl", "none") and words.share_unspaced(references) > 0.5:
        warnings.warn(
            f"BLEU: most letters of the references are of a script without spaces between words, and tokenizer"
            f" {tokenize!r} does not split it; give bleu_tokenize zh, ja-mecab or char",
            stacklevel=3,
        )
    found = metric.corpus_score(list(predictions), [list(references)]).score
    return Measured({"bleu": found}, {"bleu": metric.get_signature().format()})


def _bleu_metric(tokenize: str) -> BLEU:
    if tokenize not in BLEU_TOKENIZERS:
        raise ValueError(f"bleu_tokenize {tokenize!r} is unknown: {nearest(tokenize, BLEU_TOKENIZERS)}")
    try:
        return BLEU(tokenize=tokenize)
    except Exception as error:  # of sacrebleu, MeCab, sentencepiece, the network
        raise _missing("bleu_tokenize", tokenize) from error


def _missing(setting: str, name: str) -> ValueError:
    return ValueError(f"{setting} {name!r} needs more: {EXTRAS.get(name, FLORES)}; or give another, such as 'char'")


def _chrf(predictions: Sequence[str], references: Sequence[str]) -> Measured:
    metric = CHRF()
    found = metric.corpus_score(list(predictions), [list(references)]).score
    return Measured({"chrf": found}, {"chrf": metric.get_signature().format()})


def _rouge(predictions: Sequence[str], references: Sequence[str], use_stemmer: bool, tokenizer: str) -> Measured:
    asked, note = tokenizer, None
    if tokenizer == "auto":
        lost = words.share_lost(references)
        tokenizer = "unicode" if lost > 0.5 else "rouge-score"
        if tokenizer == "unicode":
            note = f"{100 * lost:.0f} % of the references' letters are beyond a-z, so Unicode words are compared"
    if tokenizer == "rouge-score" and (cut := words.share_with_lost(references)) > 0.5:
        note = f"{100 * cut:.0f} % of the references lose letters, since rouge-score's tokenizer knows a-z only"
    if note is not None:
        warnings.warn(f"ROUGE: {note}; rouge_tokenizer chooses another", stacklevel=3)
    split = _rouge_words(tokenizer)
    *types, of_sentences = METRICS["rouge"]
    scorer = RougeScorer(types, use_stemmer=use_stemmer, tokenizer=split)
    by_sentence = RougeScorer([of_sentences], use_stemmer=use_stemmer, tokenizer=split)
    rows = [
        scorer.score(reference, prediction)
        | by_sentence.score(*("\n".join(words.sentences(text)) for text in (reference, prediction)))
        for prediction, reference in zip(predictions, references)
    ]
    scores = {name: 100 * sum(row[name].fmeasure for row in rows) / len(rows) for name in METRICS["rouge"]}
    stem = "porter" if use_stemmer and tokenizer == "rouge-score" else "no"
    chosen = f"{tokenizer} (auto)" if asked == "auto" else tokenizer
    version = importlib.metadata.version("rouge-score")
    parts = ("nrefs:1", "case:lc", f"tok:{chosen}", f"stem:{stem}", "lsum:lines-or-sentences", f"rouge-score:{version}")
    return Measured(scores, {"rouge": "|".join(parts)})


def _rouge_words(name: str) -> SimpleNamespace | None:
    """What rouge-score takes for a tokenizer; None is its own."""
    if name not in ROUGE_TOKENIZERS:
        raise ValueError(f"rouge_tokenizer {name!r} is unknown: {nearest(name, ROUGE_TOKENIZERS)}")
    if name in ("auto", "rouge-score"):
        return None
    if name == "unicode":
        return SimpleNamespace(tokenize=words.words)
    try:
        split = BLEU(tokenize=name).tokenizer
    except Exception as error:  # of sacrebleu and MeCab
        raise _missing("rouge_tokenizer", name) from error
    return SimpleNamespace(tokenize=lambda text: split(text.lower()).split())
