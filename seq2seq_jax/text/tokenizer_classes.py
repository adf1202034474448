"""How each of torch's tokenizer classes cuts a text, as data; source: tokenization_*.py of transformers 5."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Regex, decoders, normalizers, pre_tokenizers

from seq2seq_jax.text import tokenizer_parts as parts
from seq2seq_jax.text.tokenizer_parts import Context, Scores

WORD_PIECE, BPE, UNIGRAM = "WordPiece", "BPE", "Unigram"
# The vocabulary where there is no tokenizer.json: word pieces, byte-level BPE, sentencepiece under any of its names.
VOCAB_TXT, MERGES = ("vocab.txt",), ("vocab.json", "merges.txt")
SENTENCEPIECE = ("spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model", "tokenizer.model")
MARIAN = ("source.spm", "target.spm", "vocab.json")


def _nothing(_: Context) -> None:
    return None


@dataclass(frozen=True)
class Kind:
    """A tokenizer class.

    Attributes:
      model: "WordPiece", "BPE" or "Unigram".
      files: where the vocabulary lies if there is no tokenizer.json.
      tokens: the special tokens where the files do not say.
      settings: where the files do not say.
      required: the special tokens that it cannot do without.
      flags: of special tokens that the files give as mere strings.
      options: of the model.
      named_unk: whether a BPE model knows its unknown token; otherwise it drops what it does not know.
      normalizer, pre_tokenizer, decoder: from the context.
      around, around_second: what is put around a text, and around a second one after it, by the names of the special
        tokens; None for what tokenizer.json or add_bos_token and add_eos_token say.
      filed_around: whether tokenizer.json's post-processor goes before `around`.
      arrange: the vocabulary made from a sentencepiece model's.
      unk_id: of a unigram vocabulary.
      extra: more special tokens, after those of the sentencepiece model.
      language: the token that "{lang}" stands for in `around`.
      by_sentencepiece: whether torch asks the sentencepiece library, so that a tokenizer.json does not count.
    """

    model: str
    files: tuple[str, ...]
    tokens: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    flags: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    named_unk: bool = False
    normalizer: Callable[[Context], normalizers.Normalizer | None] = _nothing
    pre_tokenizer: Callable[[Context], pre_tokenizers.PreTokenizer | None] = _nothing
    decoder: Callable[[Context], decoders.Decoder | None] = _nothing
    around: str | None = None
    around_second: str = ""
    filed_around: bool = False
    arrange: Callable[[Scores, Context], Scores] = lambda pieces, _: pieces
    unk_id: Callable[[Scores, Context], int] = lambda vocab, _: 0
    extra: Callable[[Context], list[str]] = lambda _: []
    language: Callable[[Context], str | None] = _nothing
    by_sentencepiece: bool = False


def _named(text: str) -> dict[str, str]:
    """Special tokens from "bos=<s> eos=</s>"."""
    return {f"{key}_token": token for key, token in (part.split("=") for part in text.split())}


_BERT = _named("unk=[UNK] sep=[SEP] pad=[PAD] cls=[CLS] mask=[MASK]")
_ALBERT = _named("bos=[CLS] eos=[SEP] unk=<unk> sep=[SEP] pad=<pad> cls=[CLS] mask=[MASK]")
_FAIRSEQ = _named("bos=<s> eos=</s> unk=<unk> sep=</s> pad=<pad> cls=<s> mask=<mask>")
_END = "<|endoftext|>"
_LSTRIP_MASK = {"mask_token": {"lstrip": True}}
_PLAIN = {"fuse_unk": False, "continuing_subword_prefix": "", "end_of_word_suffix": ""}
_PAIR = dict(around="{cls} $A {sep}", around_second="$B:1 {sep}:1")
_FAIRSEQ_PAIR = dict(around="{bos} $A {eos}", around_second="{eos} $B {eos}")
_LIBRARY = dict(
    normalizer=parts.sentencepiece_normalizer,
    pre_tokenizer=parts.user_symbols,
    decoder=parts.stripped_decoder,
    options=dict(fuse_unk=True, ignore_merges=True),  # the latter for the user-defined symbols
    named_unk=True,
    unk_id=lambda vocab, c: c.model.unk_id,
    by_sentencepiece=True,
)

AS_FILED = "PreTrainedTokenizerFast"

KINDS: dict[str, Kind] = {
    "Bert": Kind(
        WORD_PIECE,
        VOCAB_TXT,
        _BERT,
        required=("unk_token", "cls_token", "sep_token"),
        normalizer=parts.bert_normalizer,
        pre_tokenizer=lambda c: pre_tokenizers.BertPreTokenizer(),
        decoder=lambda c: decoders.WordPiece(prefix="##"),
        **_PAIR,
    ),
    "MPNet": Kind(
        WORD_PIECE,
        VOCAB_TXT,
        {**_FAIRSEQ, "unk_token": "[UNK]"},
        required=("unk_token", "cls_token", "sep_token"),
        flags=_LSTRIP_MASK,
        normalizer=parts.bert_normalizer,
        pre_tokenizer=lambda c: pre_tokenizers.BertPreTokenizer(),
        decoder=lambda c: decoders.WordPiece(prefix="##"),
        around="{cls} $A {sep}",
        around_second="{sep} $B {sep}",
    ),
    "GPT2": Kind(BPE, MERGES, _named(f"bos={_END} eos={_END} unk={_END}"), options=_PLAIN, **parts.byte_level()),
    "Roberta": Kind(
        BPE,
        MERGES,
        _FAIRSEQ,
        required=("cls_token", "sep_token"),
        options=_PLAIN,
        around="{cls} $A {sep}",
        around_second="{sep} $B {sep}",
        **parts.byte_level(),
    ),
    "Blenderbot": Kind(
        BPE,
        MERGES,
        _FAIRSEQ,
        flags=_LSTRIP_MASK,
        options=_PLAIN,
        **parts.byte_level(True),
    ),
    "Deberta": Kind(
        BPE,
        MERGES,
        {**_BERT, "bos_token": "[CLS]", "eos_token": "[SEP]"},
        required=("cls_token", "sep_token"),
        options=_PLAIN,
        around="{cls} $A {sep}",
        around_second="{sep} $B {sep}",
        **parts.byte_level(),
    ),
    "Qwen2": Kind(
        BPE,
        MERGES,
        _named(f"unk={_END} eos={_END} pad={_END}"),
        options=_PLAIN,
        normalizer=lambda c: normalizers.NFC(),
        pre_tokenizer=parts.qwen2_pre_tokenizer,
        decoder=lambda c: decoders.ByteLevel(),
    ),
    "T5": Kind(
        UNIGRAM,
        SENTENCEPIECE,
        _named("eos=</s> unk=<unk> pad=<pad>"),
        required=("eos_token",),
        normalizer=parts.rules_only,
        around="$A {eos}",
        around_second="$B {eos}",
        arrange=lambda pieces, c: [*pieces, *((token, 0.0) for token in reversed(parts.t5_ids(c)))],
        unk_id=lambda vocab, c: 2,
        extra=parts.t5_ids,
        **parts.always_metaspace(words=True),
    ),
    "XLMRoberta": Kind(
        UNIGRAM,
        SENTENCEPIECE,
        _FAIRSEQ,
        required=("bos_token", "eos_token", "pad_token", "unk_token", "mask_token"),
        normalizer=parts.rules_only,
        arrange=parts.fairseq(3),
        unk_id=lambda vocab, c: 3,
        **parts.metaspace(words=True),
        **_FAIRSEQ_PAIR,
    ),
    "Camembert": Kind(
        UNIGRAM,
        SENTENCEPIECE,
        _FAIRSEQ,
        required=("bos_token", "eos_token", "pad_token", "unk_token", "mask_token"),
        flags=_LSTRIP_MASK,
        normalizer=parts.rules_only,
        arrange=parts.camembert_arrange,
        unk_id=lambda vocab, c: next((i for i, (t, _) in enumerate(vocab) if t == c.named["unk_token"]), 0),
        extra=lambda c: ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"] if c.model is None else [],
        **parts.metaspace(words=True),
        **_FAIRSEQ_PAIR,
    ),
    "MBart": Kind(
        UNIGRAM,
        SENTENCEPIECE,
        _FAIRSEQ,
        required=("bos_token", "eos_token", "pad_token", "unk_token", "mask_token"),
        flags=_LSTRIP_MASK,
        around="$A {eos} {lang}",
        language=parts.language("en_XX"),
        arrange=parts.fairseq(3, *parts.LANGUAGES),
        unk_id=lambda vocab, c: 3,
        extra=lambda c: list(parts.LANGUAGES),
        **parts.always_metaspace(words=True),
    ),
    "MBart50": Kind(
        UNIGRAM,
        SENTENCEPIECE,
        {k: v for k, v in _FAIRSEQ.items() if k != "bos_token"},
        required=("cls_token", "eos_token", "pad_token", "unk_token", "mask_token"),
        flags=_LSTRIP_MASK,
        normalizer=parts.rules_and_spaces,
        around="{lang} $A {eos}",
        language=parts.language("en_XX"),
        arrange=parts.fairseq(3, *parts.LANGUAGES, *parts.MORE_LANGUAGES),
        unk_id=lambda vocab, c: 3,
        extra=lambda c: [*parts.LANGUAGES, *parts.MORE_LANGUAGES],
        **parts.always_metaspace(words=False),
    ),
    "XGLM": Kind(
        UNIGRAM,
        SENTENCEPIECE,
        {k: v for k, v in _FAIRSEQ.items() if k != "mask_token"},
        required=("bos_token", "eos_token"),
        normalizer=parts.rules_and_spaces,
        around="{eos} $A",
        around_second="{eos} {eos} $B",
        arrange=parts.xglm_arrange,
        unk_id=lambda vocab, c: 3,
        extra=lambda c: parts.MADE_UP,
        **parts.metaspace(),
    ),
    "Albert": Kind(
        UNIGRAM,
        SENTENCEPIECE,
        _ALBERT,
        required=("cls_token", "sep_token"),
        normalizer=parts.quotes_and_accents(lower=True, keep_accents=False, spaces=False),
        filed_around=True,
        unk_id=lambda vocab, c: 1,
        **parts.metaspace(words=True),
        **_PAIR,
    ),
    "RemBert": Kind(
        UNIGRAM,
        SENTENCEPIECE,
        _ALBERT,
        required=("cls_token", "sep_token"),
        normalizer=parts.quotes_and_accents(lower=False, keep_accents=True, spaces=True),
        unk_id=lambda vocab, c: 2,
        **parts.metaspace(),
        **_PAIR,
    ),
    "BigBird": Kind(
        UNIGRAM,
        SENTENCEPIECE,
        _named("bos=<s> eos=</s> unk=<unk> sep=[SEP] pad=<pad> cls=[CLS] mask=[MASK]"),
        required=("cls_token", "sep_token"),
        flags=_LSTRIP_MASK,
        normalizer=lambda c: normalizers.Replace(Regex(" {2,}"), "▁"),
        unk_id=lambda vocab, c: parts.index(vocab, c, 100),
        **parts.metaspace(),
        **_PAIR,
    ),
    "Pegasus": Kind(
        UNIGRAM,
        SENTENCEPIECE,
        _named("pad=<pad> eos=</s> unk=<unk> mask=<mask_2>"),
        required=("eos_token", "pad_token", "unk_token"),
        normalizer=parts.pegasus_normalizer,
        around="$A {eos}",
        arrange=parts.pegasus_arrange,
        unk_id=lambda vocab, c: parts.index(vocab, c, 0, start=1),
        extra=parts.pegasus_extra,
        **parts.always_metaspace(words=False),
    ),
    "DebertaV2": Kind(
        UNIGRAM,
        SENTENCEPIECE,
        {**_BERT, "bos_token": "[CLS]", "eos_token": "[SEP]"},
        required=("cls_token", "sep_token"),
        normalizer=parts.deberta_v2_normalizer,
        pre_tokenizer=parts.deberta_v2_pre_tokenizer,
        decoder=lambda c: decoders.Metaspace("▁", parts.prefix(c, "first")),
        unk_id=lambda vocab, c: parts.index(vocab, c, c.settings.get("unk_id", 1)),
        **_PAIR,
    ),
    "Llama": Kind(
        BPE,
        SENTENCEPIECE,
        _named("unk=<unk> bos=<s> eos=</s>"),
        options=dict(fuse_unk=True, byte_fallback=True),
        pre_tokenizer=parts.llama_pre_tokenizer,
        decoder=parts.bytes_decoder(strip=True),
    ),
    "Gemma": Kind(
        BPE,
        SENTENCEPIECE,
        _named("unk=<unk> bos=<bos> eos=<eos> pad=<pad> mask=<mask>"),
        options=dict(fuse_unk=True, byte_fallback=True),
        named_unk=True,
        normalizer=lambda c: normalizers.Replace(" ", "▁"),
        pre_tokenizer=lambda c: pre_tokenizers.Split(" ", "merged_with_previous"),
        decoder=parts.bytes_decoder(strip=False),
    ),
    "BertGeneration": Kind(
        UNIGRAM, SENTENCEPIECE, _named("bos=<s> eos=</s> unk=<unk> pad=<pad> sep=<::::>"), around="$A", **_LIBRARY
    ),
    "PLBart": Kind(
        UNIGRAM,
        SENTENCEPIECE,
        _FAIRSEQ,
        required=("bos_token", "eos_token", "pad_token", "unk_token", "mask_token"),
        flags=_LSTRIP_MASK,
        around="$A {eos} {lang}",
        language=parts.plbart_language,
        arrange=parts.plbart_arrange,
        extra=parts.plbart_codes,
        settings={"clean_up_tokenization_spaces": True},
        **{**_LIBRARY, "unk_id": lambda vocab, c: 3},
    ),
    "GPTSw3": Kind(
        BPE,
        SENTENCEPIECE,
        _named(f"pad=<pad> unk=<unk> eos={_END} bos=<s>"),
        around="$A",
        **{**_LIBRARY, "normalizer": parts.gpt_sw3_normalizer, "decoder": parts.bytes_decoder(strip=True)},
    ),
    "Marian": Kind(
        UNIGRAM,
        MARIAN,
        _named("unk=<unk> eos=</s> pad=<pad>"),
        required=("unk_token", "eos_token"),
        around="$A {eos}",
        **{**_LIBRARY, "unk_id": lambda vocab, c: [token for token, _ in vocab].index(c.named["unk_token"])},
    ),
}

CLASSES = {
    **{name: name for name in KINDS},
    **dict.fromkeys(("DistilBert", "Electra", "ConvBert", "MobileBert", "SqueezeBert", "LayoutLM"), "Bert"),
    **dict.fromkeys(("Bart", "Longformer", "LED", "Mvp"), "Roberta"),
    "MT5": "T5",
}
MODEL_TYPES = {
    **dict.fromkeys(("bert", "distilbert", "electra", "convbert", "mobilebert", "squeezebert", "layoutlm"), "Bert"),
    **dict.fromkeys(("ernie", "megatron-bert", "nomic_bert"), "Bert"),
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "opt"), "GPT2"),
    **dict.fromkeys(
        ("roberta", "roberta-prelayernorm", "data2vec-text", "bart", "longformer", "led", "mvp"), "Roberta"
    ),
    **dict.fromkeys(("t5", "mt5", "umt5"), "T5"),
    **dict.fromkeys(("xlm-roberta", "xlm-roberta-xl", "trocr"), "XLMRoberta"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text", "t5gemma"), "Gemma"),
    **dict.fromkeys(("llama", "mistral"), "Llama"),
    **dict.fromkeys(("qwen2", "qwen3"), "Qwen2"),
    **{"mpnet": "MPNet", "blenderbot": "Blenderbot", "deberta": "Deberta", "deberta-v2": "DebertaV2"},
    **{"camembert": "Camembert", "mbart": "MBart", "mbart50": "MBart50", "xglm": "XGLM", "albert": "Albert"},
    **{"rembert": "RemBert", "big_bird": "BigBird", "pegasus": "Pegasus", "bert-generation": "BertGeneration"},
    **{"plbart": "PLBart", "gpt-sw3": "GPTSw3", "marian": "Marian"},
}
# torch takes the tokenizer.json of these as it is, whatever class their files name.
FILED_MODEL_TYPES = frozenset(("umt5", "xlm-roberta-xl", "gpt_bigcode", "modernbert", "mistral"))
