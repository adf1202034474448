"""transformers' tokenizer classes, as data; source: tokenization_*.py of transformers 5.

`BUILT` are the classes that are built here from `vocab.txt`, or from `vocab.json` and `merges.txt`. Of every other
class only the names of its special tokens are needed, for a `tokenizer.json` whose small files do not name them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Regex, decoders, normalizers, pre_tokenizers

Settings = Mapping[str, Any]  # what tokenizer_config.json and special_tokens_map.json say

WORD_PIECE, BPE = "WordPiece", "BPE"
VOCAB_TXT, MERGES = ("vocab.txt",), ("vocab.json", "merges.txt")
GENERIC_CLASS = "PreTrainedTokenizerFast"  # the class that takes a tokenizer.json as it is

QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _no_normalizer(_: Settings) -> None:
    return None


@dataclass(frozen=True)
class BuiltClass:
    """A tokenizer class that is built from its vocabulary.

    Attributes:
      model: "WordPiece" or "BPE" (of bytes).
      files: the files of the vocabulary if there is no tokenizer.json.
      tokens: the special tokens if the files do not name them.
      pre_tokenizer, normalizer: made from the settings.
      required: the special tokens without which the class cannot work.
      flags: of special tokens that the files give as plain strings.
      template: what surrounds a text, by the names of the special tokens; None: what tokenizer.json says, or
        add_bos_token and add_eos_token. template_second: the same for the second text of a pair of texts.
    """

    model: str
    files: tuple[str, ...]
    tokens: Mapping[str, str]
    pre_tokenizer: Callable[[Settings], pre_tokenizers.PreTokenizer]
    normalizer: Callable[[Settings], normalizers.Normalizer | None] = _no_normalizer
    required: tuple[str, ...] = ()
    flags: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    template: str | None = None
    template_second: str = ""

    @property
    def decoder(self) -> decoders.Decoder:
        return decoders.WordPiece(prefix="##") if self.model == WORD_PIECE else decoders.ByteLevel()


def _tokens(text: str) -> dict[str, str]:
    """Special tokens from "bos=<s> eos=</s>"."""
    return {f"{key}_token": token for key, token in (part.split("=") for part in text.split())}


def _bert_normalizer(settings: Settings) -> normalizers.Normalizer:
    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )


def _bert_words(_: Settings) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.BertPreTokenizer()


def _byte_level(add_prefix_space: bool = False) -> Callable[[Settings], pre_tokenizers.PreTokenizer]:
    return lambda settings: pre_tokenizers.ByteLevel(bool(settings.get("add_prefix_space", add_prefix_space)))


def _qwen2_words(settings: Settings) -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated")
    spaced = settings.get("add_prefix_space") or False
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(spaced, use_regex=False)])


_BERT = _tokens("unk=[UNK] sep=[SEP] pad=[PAD] cls=[CLS] mask=[MASK]")
_DEBERTA = {**_BERT, "bos_token": "[CLS]", "eos_token": "[SEP]"}
_FAIRSEQ = _tokens("bos=<s> eos=</s> unk=<unk> sep=</s> pad=<pad> cls=<s> mask=<mask>")
_ALBERT = _tokens("bos=[CLS] eos=[SEP] unk=<unk> sep=[SEP] pad=<pad> cls=[CLS] mask=[MASK]")
_END = "<|endoftext|>"
_LSTRIP_MASK = {"mask_token": {"lstrip": True}}
_SEP_TWICE = dict(template="{cls} $A {sep}", template_second="{sep} $B {sep}")
_CLS_SEP = ("cls_token", "sep_token")

BUILT: dict[str, BuiltClass] = {
    "Bert": BuiltClass(
        WORD_PIECE,
        VOCAB_TXT,
        _BERT,
        _bert_words,
        _bert_normalizer,
        required=("unk_token", *_CLS_SEP),
        template="{cls} $A {sep}",
        template_second="$B:1 {sep}:1",
    ),
    "MPNet": BuiltClass(
        WORD_PIECE,
        VOCAB_TXT,
        {**_FAIRSEQ, "unk_token": "[UNK]"},
        _bert_words,
        _bert_normalizer,
        required=("unk_token", *_CLS_SEP),
        flags=_LSTRIP_MASK,
        **_SEP_TWICE,
    ),
    "GPT2": BuiltClass(BPE, MERGES, _tokens(f"bos={_END} eos={_END} unk={_END}"), _byte_level()),
    "Roberta": BuiltClass(BPE, MERGES, _FAIRSEQ, _byte_level(), required=_CLS_SEP, **_SEP_TWICE),
    "Blenderbot": BuiltClass(BPE, MERGES, _FAIRSEQ, _byte_level(True), flags=_LSTRIP_MASK),
    "Deberta": BuiltClass(BPE, MERGES, _DEBERTA, _byte_level(), required=_CLS_SEP, **_SEP_TWICE),
    "Qwen2": BuiltClass(
        BPE, MERGES, _tokens(f"unk={_END} eos={_END} pad={_END}"), _qwen2_words, lambda _: normalizers.NFC()
    ),
}

# The special tokens of the other classes, if the files do not name them.
TOKENS: dict[str, Mapping[str, str]] = {
    "T5": _tokens("eos=</s> unk=<unk> pad=<pad>"),
    **dict.fromkeys(("XLMRoberta", "Camembert", "MBart", "Nllb"), _FAIRSEQ),
    "MBart50": {name: token for name, token in _FAIRSEQ.items() if name != "bos_token"},
    "XGLM": {name: token for name, token in _FAIRSEQ.items() if name != "mask_token"},
    **dict.fromkeys(("Albert", "RemBert"), _ALBERT),
    "BigBird": _tokens("bos=<s> eos=</s> unk=<unk> sep=[SEP] pad=<pad> cls=[CLS] mask=[MASK]"),
    "Pegasus": _tokens("pad=<pad> eos=</s> unk=<unk> mask=<mask_2>"),
    "DebertaV2": _DEBERTA,
    "Llama": _tokens("unk=<unk> bos=<s> eos=</s>"),
    "Gemma": _tokens("unk=<unk> bos=<bos> eos=<eos> pad=<pad> mask=<mask>"),
    "BertGeneration": _tokens("bos=<s> eos=</s> unk=<unk> pad=<pad> sep=<::::>"),
}
# The classes that put [CLS] and [SEP] around a text even if their tokenizer.json does not say so: transformers 5 writes
# such a file from RemBERT's sentencepiece model.
CLS_SEP = frozenset(("RemBert", "BigBird", "DebertaV2"))

_SAME = {
    **dict.fromkeys(("DistilBert", "Electra", "ConvBert", "MobileBert", "SqueezeBert", "LayoutLM"), "Bert"),
    **dict.fromkeys(("Bart", "Longformer", "LED", "Mvp"), "Roberta"),
    "MT5": "T5",
}
_MODEL_TYPES = {
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
}
# AutoTokenizer takes the tokenizer.json of these models as it is, whatever class their files name.
_FILED_MODEL_TYPES = frozenset(("gpt_bigcode", "modernbert"))


def class_of(class_name: str | None, model_type: str | None) -> str | None:
    """The key of `BUILT` or `TOKENS` for what the files say; None: neither has it."""
    if not class_name:
        return _MODEL_TYPES.get(model_type)
    name = class_name.removesuffix("Fast").removesuffix("Tokenizer")
    name = _SAME.get(name, name)
    return name if name in BUILT or name in TOKENS else None


def is_built(name: str | None, model_type: str | None, has_json: bool) -> bool:
    """Whether a tokenizer of the class `name` is built here rather than taken from its tokenizer.json as it is."""
    return name in BUILT and not (has_json and model_type in _FILED_MODEL_TYPES)
