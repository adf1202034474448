import functools

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from seq2seq_jax.config import EvaluationConfig
from seq2seq_jax.evaluation.metrics import bleu, check_tokenizers, compute_metrics, rouge

ENGLISH = ['The cafés were running late. He said: "No!"', "A naïve cat sat down.\nIt slept."]
OUTPUTS = ["He said no. The cafés run late.", "a cat slept.\nIt sat"]
SCRIPTS = {
    "hi": "पूर्व प्रधानमन्त्री शिंजो आबेको",
    "zh": "今天天气很好，我们去公园玩。",
    "ja": "今日は天気がいいです。",
    "ru": "это хорошая книга",
    "el": "αυτό είναι ένα βιβλίο",
    "ar": "هذا كتاب جيد",
    "th": "สวัสดีชาวโลก",
    "ko": "안녕하세요 세계",
    "de": "Größe für Äpfel",
    "en": "the cat sat",
}


def test_rouge_by_hand():
    scores = rouge(["the cat sat", "a b"], ["the cat sat down", "c d"]).scores
    # rouge1: precision 3/3, recall 3/4, F1 6/7; the second pair shares nothing.
    assert scores["rouge1"] == pytest.approx(100 * (6 / 7) / 2)
    # rouge2: precision 2/2, recall 2/3, F1 4/5.
    assert scores["rouge2"] == pytest.approx(100 * (4 / 5) / 2)
    assert scores["rougeL"] == pytest.approx(100 * (6 / 7) / 2)
    assert rouge(["runs"], ["running"]).scores["rouge1"] == pytest.approx(100)


@pytest.mark.filterwarnings("ignore:ROUGE")  # of the é and the ï
def test_rouge_of_english_is_that_of_rouge_score():
    """rougeLsum of texts whose sentences stand in lines."""
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    lines = lambda text: text.replace(". ", ".\n")
    rows = [scorer.score(lines(reference), lines(output)) for reference, output in zip(ENGLISH, OUTPUTS)]
    expected = {name: sum(100 * row[name].fmeasure for row in rows) / 2 for name in rows[0]}
    assert rouge(OUTPUTS, ENGLISH).scores == pytest.approx(expected), "one line for all sentences: they are found"
    assert rouge(list(map(lines, OUTPUTS)), list(map(lines, ENGLISH))).scores == pytest.approx(expected)
    assert expected["rougeLsum"] > expected["rougeL"]
    assert "|tok:rouge-score (auto)|stem:porter|" in compute_metrics(OUTPUTS, ENGLISH, ["rouge"]).signatures["rouge"]


@pytest.mark.filterwarnings("ignore:ROUGE", "ignore:BLEU")
@pytest.mark.parametrize("language", SCRIPTS)
def test_equal_texts_of_any_script(language):
    text = SCRIPTS[language]
    scores = rouge([text], [text]).scores
    assert scores["rouge1"] == scores["rougeL"] == scores["rougeLsum"] == pytest.approx(100)
    other = rouge([text], [SCRIPTS["el" if language != "el" else "ru"]]).scores
    assert other["rouge1"] == 0


def test_one_tokenizer_for_all_texts():
    """Chosen by the letters of all references, and said; whoever loses many letters is told."""
    russian, english = SCRIPTS["ru"], SCRIPTS["en"]
    with pytest.warns(
        UserWarning, match="62 % of the references' letters are beyond a-z, so Unicode words are compared"
    ):
        measured = compute_metrics([russian, english], [russian, english], ["rouge"])
    assert measured.scores["rouge1"] == pytest.approx(100)
    assert "|tok:unicode (auto)|stem:no|" in measured.signatures["rouge"]
    german = SCRIPTS["de"]
    with pytest.warns(UserWarning, match=r"100 % of the references lose letters, since rouge-score's tokenizer"):
        measured = compute_metrics(["Gr fox pfel"], [german], ["rouge"])
    assert measured.scores["rouge1"] > 0 and "|tok:rouge-score (auto)|" in measured.signatures["rouge"]
    measured = compute_metrics(["Gr fox pfel"], [german], ["rouge"], rouge_tokenizer="unicode")
    assert measured.scores["rouge1"] == 0 and "|tok:unicode|" in measured.signatures["rouge"]


@pytest.mark.parametrize("name, shared", [("unicode", 11 / 12), ("zh", 13 / 14), ("char", 13 / 14)])
def test_words_of_chinese(name, shared):
    """One character of 12, or of 14 with punctuation, is another."""
    text = SCRIPTS["zh"]
    assert rouge([text.replace("玩", "跑")], [text], tokenizer=name).scores["rouge1"] == pytest.approx(100 * shared)


@pytest.mark.filterwarnings("ignore:BLEU")
@pytest.mark.parametrize("tokenize", ["13a", "intl", "zh", "char", "none"])
def test_bleu_is_that_of_sacrebleu(tokenize):
    outputs, references = [SCRIPTS["zh"].replace("玩", "跑"), "a, b c d."], [SCRIPTS["zh"], "a, b c e."]
    expected = sacrebleu.corpus_bleu(outputs, [references], tokenize=tokenize).score
    assert bleu(outputs, references, tokenize=tokenize).scores["bleu"] == expected
    measured = compute_metrics(outputs, references, ["bleu", "chrf"], bleu_tokenize=tokenize)
    assert measured.scores["bleu"] == expected
    assert f"|tok:{tokenize}|" in measured.signatures["bleu"] and f"|version:{sacrebleu.__version__}" in str(measured)
    assert "|nc:6|nw:0|" in measured.signatures["chrf"]


def test_bleu_warns_of_a_script_without_spaces():
    with pytest.warns(UserWarning, match="tokenizer '13a' does not split it; give bleu_tokenize zh"):
        bleu([SCRIPTS["ja"]], [SCRIPTS["ja"]])


def test_all():
    scores = compute_metrics(["a b c d e", "x"], ["a b c d e", "y"], ["exact_match", "bleu", "chrf"]).scores
    assert list(scores) == ["exact_match", "bleu", "chrf"] and scores["exact_match"] == 50
    # 5 of 6, 4 of 4, 3 of 3, 2 of 2 n-grams; no brevity penalty.
    assert scores["bleu"] == pytest.approx(100 * (5 / 6) ** 0.25) and 50 < scores["chrf"] < 100


def test_nothing_to_score():
    with pytest.raises(ValueError, match="there are 1 predictions and 2 references"):
        compute_metrics(["a"], ["a", "b"], ["rouge"])
    with pytest.raises(ValueError, match="all references are empty"):
        compute_metrics(["a"], [" "], ["rouge"])
    with pytest.raises(ValueError, match="metric 'rogue' is unknown: did you mean 'rouge'"):
        compute_metrics(["a"], ["a"], ["rogue"])


@pytest.mark.parametrize(
    "check", [functools.partial(check_tokenizers, ["rouge", "bleu"]), functools.partial(EvaluationConfig, best="loss")]
)
def test_unknown_tokenizers(check):
    """Known before anything is trained or decoded."""
    check(rouge_tokenizer="unicode", bleu_tokenize="zh")
    with pytest.raises(ValueError, match="rouge_tokenizer 'unicod' is unknown: did you mean 'unicode'"):
        check(rouge_tokenizer="unicod")
    with pytest.raises(ValueError, match="bleu_tokenize '13b' is unknown: did you mean '13a'"):
        check(bleu_tokenize="13b")


@pytest.mark.parametrize(
    "setting, name, package", [("bleu_tokenize", "ja-mecab", "ja"), ("bleu_tokenize", "ko-mecab", "ko"),
                               ("rouge_tokenizer", "ja-mecab", "ja")]
)  # fmt: skip
def test_missing_packages(monkeypatch, setting, name, package):
    from sacrebleu.tokenizers import tokenizer_ja_mecab, tokenizer_ko_mecab

    monkeypatch.setattr(tokenizer_ja_mecab, "MeCab", None)
    monkeypatch.setattr(tokenizer_ko_mecab, "MeCab", None)
    with pytest.raises(ValueError, match=rf"^{setting} '{name}' needs more: pip install 'sacrebleu\[{package}\]'; or"):
        check_tokenizers(["rouge", "bleu"], **{setting: name})
