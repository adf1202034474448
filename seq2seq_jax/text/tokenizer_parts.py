"""The steps that torch's tokenizer classes share: how they normalize, split, decode and order their vocabulary."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from tokenizers import Regex, decoders, normalizers, pre_tokenizers

from seq2seq_jax.text.sentencepiece_model import SentencePieceModel

Scores = list[tuple[str, float]]


class Context(NamedTuple):
    """What a step may depend on.

    Attributes:
      settings: of the directory's small files.
      named: the named special tokens.
      charsmap: the compiled normalization rules of a sentencepiece model, b"" for none.
      model: the sentencepiece model that the vocabulary comes from, None where it comes from elsewhere.
      side: "source" or "target".
    """

    settings: dict[str, Any]
    named: dict[str, str | None]
    charsmap: bytes
    model: SentencePieceModel | None
    side: str


# Normalizers.


def bert_normalizer(c: Context) -> normalizers.Normalizer:
    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=c.settings.get("tokenize_chinese_chars", True),
        strip_accents=c.settings.get("strip_accents"),
        lowercase=c.settings.get("do_lower_case", True),
    )


def _rules(c: Context) -> list[normalizers.Normalizer]:
    return [normalizers.Precompiled(c.charsmap)] if c.charsmap else []


def _one_space() -> normalizers.Normalizer:
    return normalizers.Replace(Regex(" {2,}"), " ")


def rules_only(c: Context) -> normalizers.Normalizer | None:
    return next(iter(_rules(c)), None)


def rules_and_spaces(c: Context) -> normalizers.Normalizer:
    return normalizers.Sequence([*_rules(c), _one_space()])


def quotes_and_accents(lower: bool, keep_accents: bool, spaces: bool) -> Callable[[Context], normalizers.Normalizer]:
    """ALBERT's and RemBERT's."""

    def make(c: Context) -> normalizers.Normalizer:
        parts = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), *([_one_space()] if spaces else [])]
        if not c.settings.get("keep_accents", keep_accents):
            parts += [normalizers.NFKD(), normalizers.StripAccents()]
        if c.settings.get("do_lower_case", lower):
            parts.append(normalizers.Lowercase())
        return normalizers.Sequence([*parts, *_rules(c)])

    return make


def pegasus_normalizer(c: Context) -> normalizers.Normalizer:
    first = _rules(c) or [normalizers.Replace(Regex(r"\n"), " ")]
    return normalizers.Sequence([*first, _one_space()])


def deberta_v2_normalizer(c: Context) -> normalizers.Normalizer:
    lower = [normalizers.Lowercase()] if c.settings.get("do_lower_case", False) else []
    spaces = normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " ")
    return normalizers.Sequence([*lower, spaces, normalizers.NFC(), normalizers.Strip(left=False, right=True)])


def sentencepiece_normalizer(c: Context) -> normalizers.Normalizer:
    """What the sentencepiece library itself does before it searches."""
    parts = _rules(c)
    if c.model.remove_extra_whitespaces:
        parts += [normalizers.Strip(), _one_space()]
    if c.model.add_dummy_prefix:
        parts.append(normalizers.Prepend(" "))
    return normalizers.Sequence([*parts, normalizers.Replace(" ", "▁")])


def gpt_sw3_normalizer(c: Context) -> normalizers.Normalizer:
    unseen = "[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00a0\u00ad\u200b]"
    spaces = "[\u2002\u2003\u2005\u2008\u2009\u200a\u202f\u3000\ufffc]"
    own = [normalizers.Replace(Regex(unseen), ""), normalizers.Replace(Regex(spaces), " "), normalizers.NFC()]
    return normalizers.Sequence([*own, sentencepiece_normalizer(c)])


# Pre-tokenizers and decoders.


def prefix(c: Context, otherwise: str = "never", none: bool = False) -> str:
    """When "▁" is put in front; `none`: what an add_prefix_space of null means."""
    asked = c.settings.get("add_prefix_space", True)
    return "always" if (none if asked is None else asked) else otherwise


def metaspace(otherwise: str = "never", words: bool = False) -> dict[str, Callable]:
    """Spaces become "▁", one of them in front; `words`: any whitespace separates, and none is kept."""

    def pre_tokenizer(c: Context) -> pre_tokenizers.PreTokenizer:
        spaces = pre_tokenizers.Metaspace("▁", prefix(c, otherwise))
        return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces]) if words else spaces

    return {"pre_tokenizer": pre_tokenizer, "decoder": lambda c: decoders.Metaspace("▁", prefix(c, otherwise))}


def always_metaspace(words: bool) -> dict[str, Callable]:
    """`metaspace` of the classes that do not ask for add_prefix_space."""
    made = metaspace(words=words)
    return {key: lambda c, make=make: make(c._replace(settings={})) for key, make in made.items()}


def deberta_v2_pre_tokenizer(c: Context) -> pre_tokenizers.PreTokenizer:
    split = [pre_tokenizers.Punctuation("isolated")] if c.settings.get("split_by_punct", False) else []
    return pre_tokenizers.Sequence([*split, pre_tokenizers.Metaspace("▁", prefix(c, "first"))])


def user_symbols(c: Context) -> pre_tokenizers.PreTokenizer | None:
    """Cuts out a sentencepiece model's user-defined symbols, the longest first; None where it has none."""
    symbols = sorted((piece.text for piece in c.model.pieces if piece.is_user_defined), key=len, reverse=True)
    return pre_tokenizers.Split(Regex("|".join(map(re.escape, symbols))), "isolated") if symbols else None


def stripped_decoder(c: Context) -> decoders.Decoder:
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Replace(Regex(r"^\s+|\s+$"), "")])


def llama_pre_tokenizer(c: Context) -> pre_tokenizers.PreTokenizer:
    scheme = prefix(c, none=True)
    if scheme == "always" and not c.settings.get("legacy", False):
        scheme = "first"
    return pre_tokenizers.Metaspace("▁", scheme, split=False)


def bytes_decoder(strip: bool) -> Callable[[Context], decoders.Decoder]:
    def make(c: Context) -> decoders.Decoder:
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        stripped = [decoders.Strip(" ", 1, 0)] if strip and prefix(c, none=True) != "never" else []
        return decoders.Sequence([*parts, *stripped])

    return make


def byte_level(add_prefix_space: bool = False) -> dict[str, Callable]:
    return {
        "pre_tokenizer": lambda c: pre_tokenizers.ByteLevel(bool(c.settings.get("add_prefix_space", add_prefix_space))),
        "decoder": lambda c: decoders.ByteLevel(),
    }


QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen2_pre_tokenizer(c: Context) -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated")
    spaced = c.settings.get("add_prefix_space") or False
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(spaced, use_regex=False)])


# Vocabularies made from a sentencepiece model's.


def fairseq(drop: int, *more: str) -> Callable[[Scores, Context], Scores]:
    """fairseq's four tokens in front, the pieces from `drop` on, then `more` and the mask token."""

    def arrange(pieces: Scores, c: Context) -> Scores:
        n = c.named
        first = [n["bos_token"] or n["cls_token"], n["pad_token"], n["eos_token"], n["unk_token"]]
        last = [*more, *([n["mask_token"]] if n["mask_token"] else [])]
        return [*((t, 0.0) for t in first), *pieces[drop:], *((t, 0.0) for t in last)]

    return arrange


def camembert_arrange(pieces: Scores, c: Context) -> Scores:
    n = c.named
    first = [("<s>NOTUSED", 0.0), (n["pad_token"], 0.0), ("</s>NOTUSED", 0.0), (n["unk_token"], 0.0)]
    return [*first, ("<unk>NOTUSED", -100.0), *pieces[1:], (n["mask_token"], 0.0)]


MADE_UP = [f"<madeupword{i}>" for i in range(7)]


def xglm_arrange(pieces: Scores, c: Context) -> Scores:
    """The ids of XGLM's checkpoints; transformers 5 leaves the order of the sentencepiece model, which no model has."""
    return [*fairseq(3)(pieces, c), *((token, 0.0) for token in MADE_UP)]


def pegasus_arrange(pieces: Scores, c: Context) -> Scores:
    n = c.named
    # The class takes mask_1 for the word mask here, where the files name none, and mask_2 for it elsewhere.
    word = c.settings.get("mask_token", "<mask_1>")
    word = word["content"] if isinstance(word, dict) else word
    sentence = c.settings.get("mask_token_sent", "<mask_2>")
    masks = [token for token in dict.fromkeys((word, sentence)) if token]
    first = [(token, 0.0) for token in (n["pad_token"], n["eos_token"], *masks)]
    fill = [(f"<unk_{i}>", -100.0) for i in range(2, c.settings.get("offset", 103))]
    return [*first, *fill, *pieces[2:]]


def pegasus_extra(c: Context) -> list[str]:
    sentence = c.settings.get("mask_token_sent", "<mask_1>")
    return [*([sentence] if sentence else []), *(f"<unk_{i}>" for i in range(2, c.settings.get("offset", 103)))]


def t5_ids(c: Context) -> list[str]:
    return [f"<extra_id_{i}>" for i in range(c.settings.get("extra_ids", 100))]


def index(vocab: Scores, c: Context, otherwise: int, start: int = 0) -> int:
    """Where the unknown token stands, with the score 0 that it has."""
    token = (c.named["unk_token"], 0.0)
    return vocab.index(token, start) if token in vocab[start:] else otherwise


def language(default: str | None) -> Callable[[Context], str | None]:
    def chosen(c: Context) -> str | None:
        source = c.settings.get("src_lang") or default
        return source if c.side == "source" else c.settings.get("tgt_lang") or source

    return chosen


_CODES = (
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP "
    "nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN"
)
_MORE_CODES = (
    "af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE sw_KE "
    "ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"
)
LANGUAGES, MORE_LANGUAGES = _CODES.split(), _MORE_CODES.split()
_PROGRAMMING = {
    "base": ["__java__", "__python__", "__en_XX__"],
    "multi": ["__java__", "__python__", "__en_XX__", "__javascript__", "__php__", "__ruby__", "__go__"],
}


def plbart_codes(c: Context) -> list[str]:
    return _PROGRAMMING[c.settings.get("language_codes", "base")]


def plbart_arrange(pieces: Scores, c: Context) -> Scores:
    arranged = fairseq(3, *plbart_codes(c))(pieces, c)
    return arranged if c.settings.get("language_codes", "base") == "base" else arranged[:-1]  # no mask in "multi"


def plbart_language(c: Context) -> str | None:
    default = None if c.settings.get("language_codes", "base") == "base" else "en_XX"
    code = language(default)(c)
    return code if code is None or code.startswith("__") else f"__{code}__"
