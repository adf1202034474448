"""From the tokenizer files of a directory to a `tokenizers.Tokenizer`, built as transformers 5 builds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
FILES = ("tokenizer.json", CONFIG, SPECIAL_TOKENS, "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt")

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_BERT, _GPT2, _ROBERTA, _AS_FILED = "bert", "gpt2", "roberta", "tokenizer.json"

# The special tokens of BertTokenizer, GPT2Tokenizer and RobertaTokenizer where the files do not say.
_DEFAULT_TOKENS = {
    _BERT: dict(unk_token="[UNK]", sep_token="[SEP]", pad_token="[PAD]", cls_token="[CLS]", mask_token="[MASK]"),
    _GPT2: dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"),
    _ROBERTA: dict(
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        sep_token="</s>",
        pad_token="<pad>",
        cls_token="<s>",
        mask_token="<mask>",
    ),
    _AS_FILED: {},
}
_REQUIRED_TOKENS = {_BERT: ("unk_token", "cls_token", "sep_token"), _GPT2: (), _ROBERTA: ("cls_token", "sep_token")}
# Written on saving, so that torch's AutoTokenizer needs no config.json beside the tokenizer.
_CLASS_NAMES = {
    _BERT: "BertTokenizer",
    _GPT2: "GPT2Tokenizer",
    _ROBERTA: "RobertaTokenizer",
    _AS_FILED: "PreTrainedTokenizerFast",
}
_KIND_OF_CLASS = {
    **dict.fromkeys(("Bert", "DistilBert", "Electra", "ConvBert", "MobileBert", "SqueezeBert", "LayoutLM"), _BERT),
    **dict.fromkeys(("GPT2",), _GPT2),
    **dict.fromkeys(("Roberta", "Bart", "Longformer", "LED"), _ROBERTA),
}
_KIND_OF_MODEL_TYPE = {
    **dict.fromkeys(("bert", "distilbert", "electra", "convbert", "mobilebert", "squeezebert", "layoutlm"), _BERT),
    **dict.fromkeys(("ernie", "megatron-bert", "nomic_bert"), _BERT),
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "opt"), _GPT2),
    **dict.fromkeys(("roberta", "roberta-prelayernorm", "data2vec-text", "bart", "longformer", "led"), _ROBERTA),
}


class TokenizerParts(NamedTuple):
    """What a directory holds.

    Attributes:
      backend: without truncation and padding.
      named: the content of each special token of `NAMED`; None where there is none.
      settings: what `tokenizer_config.json` and `special_tokens_map.json` say.
      files: name and content of the small files to write beside `tokenizer.json` on saving.
    """

    backend: Tokenizer
    named: dict[str, str | None]
    settings: dict[str, Any]
    files: dict[str, dict[str, Any]]


def read_tokenizer(directory: Path, model_config: dict[str, Any]) -> TokenizerParts:
    """Builds the tokenizer of `directory`; `model_config` is the `config.json` of the model it belongs to, or {}.

    Source: `AutoTokenizer.from_pretrained` and `TokenizersBackend` of transformers 5. As there, the BERT, GPT-2 and
    RoBERTa / BART classes take only vocabulary, merges and added tokens (GPT-2: the post-processor too) from a
    `tokenizer.json`; how text is cut follows from the class and `tokenizer_config.json`. Every other class is its
    `tokenizer.json`.

    Raises:
      FileNotFoundError: no tokenizer files. ValueError: broken files, or files of a kind that is not known.
    """
    config = read_json(directory / CONFIG)
    special_tokens_map = read_json(directory / SPECIAL_TOKENS)
    filed, whole = _read_tokenizer_json(directory / "tokenizer.json")
    class_name = config.get("tokenizer_class") or model_config.get("tokenizer_class")
    kind = _kind(directory, class_name, model_config.get("model_type"), whole is not None)

    # What the directory says elsewhere goes into the config, so that it is saved with the tokenizer.
    config = {**config, "tokenizer_class": class_name or _CLASS_NAMES[kind]}
    if filed.get("truncation"):
        config.setdefault("truncation_side", filed["truncation"].get("direction", "Right").lower())
    if filed.get("padding") and kind == _AS_FILED:
        config.setdefault("pad_token", filed["padding"]["pad_token"])
    files = {CONFIG: config, SPECIAL_TOKENS: special_tokens_map} if special_tokens_map else {CONFIG: config}
    # added_tokens_decoder came with the newer layout, in which special_tokens_map.json is only a copy.
    settings = config if "added_tokens_decoder" in config else {**config, **special_tokens_map}

    values = {**_DEFAULT_TOKENS[kind], **{k: v for k, v in settings.items() if _is_named_token(k, v)}}
    named = {key: _content(values.get(key)) for key in NAMED}
    backend = whole if kind == _AS_FILED else _build(kind, directory, filed, named, settings)
    _add_tokens(backend, _declared_tokens(directory, config, settings, filed), values, _extra_tokens(config, settings))
    _set_post_processor(backend, kind, named, settings, whole)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(settings.get("split_special_tokens", False))
    return TokenizerParts(backend, named, settings, files)


def plain_strings(directory: Path, model_config: dict[str, Any], size: int) -> dict[str, int]:
    """What each token below id `size` stands for, special ones aside: a space in front where it begins a word."""
    backend = read_tokenizer(directory, model_config).backend
    special = {token.content for token in backend.get_added_tokens_decoder().values()}

    def plain(token: str) -> str:
        if isinstance(backend.model, models.WordPiece):
            prefix = backend.model.continuing_subword_prefix
            return token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"
        if isinstance(backend.decoder, decoders.ByteLevel):
            return backend.decoder.decode([token])
        return token.replace("\u2581", " ")

    ids = {token: i for token, i in backend.get_vocab().items() if token not in special and i < size}
    return {plain(token): i for token, i in sorted(ids.items(), key=lambda item: -item[1])}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no such file; ValueError where it holds anything else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); fetch or write the file again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a JSON {type(value).__name__}, not an object; fetch or write the file again")
    return value


def _read_tokenizer_json(path: Path) -> tuple[dict[str, Any], Tokenizer | None]:
    filed = read_json(path)
    if not path.is_file():
        return filed, None
    try:
        return filed, Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"{path}: not a tokenizer ({_reason(error)}); fetch or save the file again") from error


def _kind(directory: Path, class_name: str | None, model_type: str | None, has_tokenizer_json: bool) -> str:
    present = [name for name in FILES if (directory / name).is_file()]
    if not {"tokenizer.json", "vocab.txt", "vocab.json"} & set(present):
        raise FileNotFoundError(
            f"{directory}: no tokenizer files; looked for tokenizer.json, vocab.txt, vocab.json + merges.txt; "
            "pass the directory that holds one of these"
        )
    if class_name:
        kind = _KIND_OF_CLASS.get(class_name.removesuffix("Fast").removesuffix("Tokenizer"))
    else:
        kind = _KIND_OF_MODEL_TYPE.get(model_type)
    if kind:
        return kind
    if has_tokenizer_json:
        return _AS_FILED
    if not class_name and not model_type and "vocab.txt" in present:
        return _BERT
    raise ValueError(
        f"{directory}: unknown tokenizer kind (tokenizer_class {class_name!r}, model_type {model_type!r}) for "
        f"{', '.join(present)}; name a BERT, GPT-2, RoBERTa or BART class as tokenizer_class in {CONFIG}, or save the "
        "tokenizer with tokenizer.json"
    )


def _read_vocabulary(directory: Path, kind: str, filed: dict[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges (none for BERT) from `tokenizer.json`, or else from the older files."""
    if filed:
        model = filed["model"]
        found = model.get("type") or ("BPE" if "merges" in model else "WordPiece")  # old files name no type
        wanted = "WordPiece" if kind == _BERT else "BPE"
        if found != wanted:
            raise ValueError(
                f"{directory / 'tokenizer.json'}: a {found} model, but its class is of the {kind} kind ({wanted}); "
                f"set tokenizer_class in {CONFIG} to 'PreTrainedTokenizerFast' to take the file as it is"
            )
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", ())]
        return model["vocab"], [tuple(merge) for merge in merges]
    names = ("vocab.txt",) if kind == _BERT else ("vocab.json", "merges.txt")
    paths = [str(directory / name) for name in names]
    for name in names:
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory}: no {name}; a tokenizer of the {kind} kind needs tokenizer.json or {' + '.join(names)}; "
                f"add the file, or correct tokenizer_class in {CONFIG}"
            )
    try:
        return (models.WordPiece.read_file(*paths), []) if kind == _BERT else models.BPE.read_file(*paths)
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"{' + '.join(paths)}: not readable ({_reason(error)}); fetch the files again") from error


def _build(
    kind: str, directory: Path, filed: dict[str, Any], named: dict[str, str | None], settings: dict
) -> Tokenizer:
    """BertTokenizer, GPT2Tokenizer or RobertaTokenizer, before added tokens and post-processor."""
    for key in _REQUIRED_TOKENS[kind]:
        if not named[key]:
            raise ValueError(f"{directory}: {key} is {named[key]!r} in {CONFIG}; a {kind} tokenizer needs one, name it")
    vocab, merges = _read_vocabulary(directory, kind, filed)
    try:
        if kind == _BERT:
            backend = Tokenizer(models.WordPiece(vocab, unk_token=named["unk_token"]))
        else:
            # The empty strings are what the torch class passes, and end up in the saved file.
            affixes = dict(continuing_subword_prefix="", end_of_word_suffix="")
            backend = Tokenizer(models.BPE(vocab, merges, fuse_unk=False, **affixes))
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"{directory}: vocabulary refused ({_reason(error)}); fetch the files again") from error
    if kind == _BERT:
        backend.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
            strip_accents=settings.get("strip_accents"),
            lowercase=settings.get("do_lower_case", True),
        )
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece(prefix="##")
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.get("add_prefix_space", False))
        backend.decoder = decoders.ByteLevel()
    return backend


def _set_post_processor(
    backend: Tokenizer, kind: str, named: dict[str, str | None], settings: dict[str, Any], whole: Tokenizer | None
) -> None:
    """What is put around a text: [CLS] and [SEP], <s> and </s>, or for GPT-2 what the files say."""
    cls, sep = named["cls_token"], named["sep_token"]
    if kind == _ROBERTA:
        ends = (sep, backend.token_to_id(sep)), (cls, backend.token_to_id(cls))
        spaces = settings.get("trim_offsets", True), settings.get("add_prefix_space", False)
        backend.post_processor = processors.RobertaProcessing(*ends, *spaces)
    elif kind == _GPT2 and whole is not None:
        if whole.post_processor is not None:
            backend.post_processor = whole.post_processor
    elif kind != _AS_FILED:
        if kind == _BERT:
            before, after, before_second = cls, sep, None
        else:
            before = before_second = named["bos_token"] if settings.get("add_bos_token") else None
            after = named["eos_token"] if settings.get("add_eos_token") else None
        single = " ".join(f"{part}:0" for part in (before, "$A", after) if part)
        second = " ".join(f"{part}:1" for part in (before_second, "$B", after) if part)
        special = [(token, backend.token_to_id(token)) for token in (before, after) if token]
        backend.post_processor = processors.TemplateProcessing(single, f"{single} {second}", special)


def _declared_tokens(directory: Path, config: dict, settings: dict, filed: dict) -> list[AddedToken]:
    """The added tokens that the files list, in the order of their ids."""
    if "added_tokens_decoder" in config:
        listed = {int(index): _added_token(token) for index, token in config["added_tokens_decoder"].items()}
    else:
        special = {_content(value) for key, value in settings.items() if _is_named_token(key, value)}
        special |= {_content(value) for value in _extra_tokens(config, {})}
        listed = {
            index: AddedToken(content, normalized=content not in special, special=content in special)
            for content, index in read_json(directory / "added_tokens.json").items()
        }
        listed |= {token["id"]: _added_token(token) for token in filed.get("added_tokens", ())}
    return [listed[index] for index in sorted(listed)]


def _extra_tokens(config: dict[str, Any], settings: dict[str, Any]) -> list[Any]:
    """The special tokens without a name of their own; `tokenizer_config.json` goes before the rest of the settings."""
    for source in (config, settings):
        extra = source.get("extra_special_tokens") or source.get("additional_special_tokens")
        if extra:
            return list(extra.values() if isinstance(extra, dict) else extra)
    return []


def _add_tokens(backend: Tokenizer, declared: list[AddedToken], values: dict[str, Any], extra: list[Any]) -> None:
    """Adds the listed tokens, then the named special ones, then `extra`, as `TokenizersBackend.__init__` does."""
    tokens = {token.content: token for token in declared}
    known = {token.content for token in backend.get_added_tokens_decoder().values()} | tokens.keys()
    keys = (*NAMED, *(key for key in values if key not in NAMED))
    named = [values[key] for key in keys if values.get(key) is not None]
    for value in (*named, *extra):
        if _content(value) not in known:
            tokens.setdefault(_content(value), _added_token(value, special=True))
    for value in named:
        if _content(value) in tokens:
            tokens[_content(value)].special = True
    # Those of the vocabulary keep their id; the others get the next free ids, whatever the files list.
    backend.add_tokens(list(tokens.values()))


def _added_token(value: str | dict[str, Any], **flags: bool) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, **flags)
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(value["content"], **{**{name: value[name] for name in names if name in value}, **flags})


def _is_named_token(key: str, value: Any) -> bool:
    return key.endswith("_token") and (value is None or isinstance(value, str) or _is_token_dict(value))


def _is_token_dict(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("content"), str)


def _content(value: str | dict[str, Any] | None) -> str | None:
    return value["content"] if isinstance(value, dict) else value


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
