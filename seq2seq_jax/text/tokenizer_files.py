"""From the tokenizer files of a directory to a `tokenizers.Tokenizer`, built as transformers 5 builds it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, processors

from seq2seq_jax.config.validation import first_line
from seq2seq_jax.text.gguf_tokenizer import read_gguf_tokenizer
from seq2seq_jax.text.older_layouts import SENTENCEPIECE, convert
from seq2seq_jax.text.tokenizer_classes import (
    BPE,
    BUILT,
    CLS_SEP,
    GENERIC_CLASS,
    MERGES,
    TOKENS,
    VOCAB_TXT,
    WORD_PIECE,
    BuiltClass,
    class_of,
    is_built,
)
from seq2seq_jax.weights.files import read_json, write_json
from seq2seq_jax.weights.gguf_files import find_gguf

CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
FILES = ("tokenizer.json", CONFIG, SPECIAL_TOKENS, "added_tokens.json", *VOCAB_TXT, *MERGES, *SENTENCEPIECE)

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TokenizerParts(NamedTuple):
    """What a directory holds.

    Attributes:
      backend: without truncation and padding.
      named: the content of each special token of `NAMED`; None where there is none.
      settings: what `tokenizer_config.json` and `special_tokens_map.json` say.
      files: name and content of the files to write beside `tokenizer.json` on saving: JSON objects, or bytes.
    """

    backend: Tokenizer
    named: dict[str, str | None]
    settings: dict[str, Any]
    files: dict[str, dict[str, Any] | bytes]


def read_tokenizer(directory: Path, model_config: dict[str, Any], side: str = "source") -> TokenizerParts:
    """Builds the tokenizer of `directory`; `model_config` is the `config.json` of the model it belongs to, or {}.

    The classes of `BUILT` take only vocabulary, merges and added tokens from a `tokenizer.json`, as in transformers 5;
    how they split a text follows from the class and `tokenizer_config.json`. Every other tokenizer is its
    `tokenizer.json`, which transformers writes first if there is none. A GGUF file's tokenizer is read if `directory`
    is that file, or holds it and no tokenizer files.

    Args:
      side: "source" or "target", for tokenizers that put the language (src_lang, tgt_lang) around a text.

    Source: `AutoTokenizer.from_pretrained` and `TokenizersBackend` of transformers 5.

    Raises:
      FileNotFoundError: no tokenizer files. ValueError: damaged files, or files of an unknown kind. ImportError: files
        that need the extra `tokenizers`, which is not installed.
    """
    present = {name for name in FILES if (directory / name).is_file()}
    gguf = None if present else find_gguf(directory)
    if gguf is not None:
        backend, named, settings = read_gguf_tokenizer(gguf)
        config = {**settings, "tokenizer_class": GENERIC_CLASS}
        return TokenizerParts(backend, {**dict.fromkeys(NAMED), **named}, settings, {CONFIG: config})
    if not present & {"tokenizer.json", "vocab.json", *VOCAB_TXT, *SENTENCEPIECE}:
        raise FileNotFoundError(
            f"{directory}: no tokenizer files; looked for tokenizer.json, vocab.txt, vocab.json + merges.txt, "
            f"{', '.join(SENTENCEPIECE)} and one .gguf file; pass the directory that holds one of these"
        )
    config = read_json(directory / CONFIG, optional=True)
    class_name = config.get("tokenizer_class") or model_config.get("tokenizer_class")
    model_type = model_config.get("model_type")
    name = class_of(class_name, model_type)
    if "tokenizer.json" in present or name in BUILT:
        return _read(directory, class_name, model_type, side)
    if class_name or model_type:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder)
            needed = convert(directory, model_config, output, class_name)
            # Settings that transformers does not save, such as LLaMA's "legacy", but its classes read.
            kept = {key: value for key, value in config.items() if key != "added_tokens_decoder"}
            write_json(output / CONFIG, {**kept, **read_json(output / CONFIG, optional=True)})
            parts = _read(output, class_name, model_type, side)
        return parts._replace(files={**parts.files, **{path.name: path.read_bytes() for path in needed}})
    if "vocab.txt" in present:
        return _read(directory, "BertTokenizer", None, side)
    raise ValueError(
        f"{directory}: unknown tokenizer kind for {', '.join(sorted(present))}; name its class (such as 'T5Tokenizer')"
        f" as tokenizer_class in {CONFIG}, or save the tokenizer with tokenizer.json"
    )


def _read(directory: Path, class_name: str | None, model_type: str | None, side: str) -> TokenizerParts:
    """The tokenizer of a tokenizer.json, or of a class of `BUILT`."""
    config = read_json(directory / CONFIG, optional=True)
    special_tokens_map = read_json(directory / SPECIAL_TOKENS, optional=True)
    tokenizer_json, json_tokenizer = _read_tokenizer_json(directory / "tokenizer.json")
    name = class_of(class_name, model_type)
    built = BUILT[name] if is_built(name, model_type, bool(tokenizer_json)) else None

    # What the directory says elsewhere goes into the config, so that it is saved with the tokenizer.
    config = {**config, "tokenizer_class": class_name or (f"{name}Tokenizer" if built else GENERIC_CLASS)}
    if tokenizer_json.get("truncation"):
        config.setdefault("truncation_side", tokenizer_json["truncation"].get("direction", "Right").lower())
    if tokenizer_json.get("padding"):
        config.setdefault("padding_side", tokenizer_json["padding"].get("direction", "Right").lower())
        if built is None:
            config.setdefault("pad_token", tokenizer_json["padding"]["pad_token"])
    # added_tokens_decoder came with the newer layout, in which special_tokens_map.json is only a copy.
    settings = config if "added_tokens_decoder" in config else {**config, **special_tokens_map}

    defaults = built.tokens if built else TOKENS.get(name, {})
    if built is None:
        defaults = {key: token for key, token in defaults.items() if json_tokenizer.token_to_id(token) is not None}
    values = {**defaults, **{key: value for key, value in settings.items() if _is_named_token(key, value)}}
    if built:
        values = {key: _flagged(value, built.flags.get(key)) for key, value in values.items()}
    elif not class_name:  # GENERIC_CLASS has no names of its own
        config.update({key: token for key, token in defaults.items() if key not in settings})
    files = {CONFIG: config, SPECIAL_TOKENS: special_tokens_map} if special_tokens_map else {CONFIG: config}
    named = {key: _content(values.get(key)) for key in NAMED}
    backend = json_tokenizer if built is None else _build(directory, name, built, tokenizer_json, settings, named)
    _add_tokens(
        backend, _declared_tokens(directory, config, settings, tokenizer_json), values, _extra_tokens(config, settings)
    )
    if built:
        _set_post_processor(backend, built, settings, named, json_tokenizer)
    elif name in CLS_SEP and not backend.num_special_tokens_to_add(False):
        cls, sep = named["cls_token"], named["sep_token"]
        _set_template(backend, [cls, "$A", sep], [cls, "$A", sep, "$B:1", f"{sep}:1"])
    else:
        _set_language(directory, backend, settings, named, side)
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


def _read_tokenizer_json(path: Path) -> tuple[dict[str, Any], Tokenizer | None]:
    tokenizer_json = read_json(path, optional=True)
    if not path.is_file():
        return tokenizer_json, None
    try:
        return tokenizer_json, Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"{path}: not a tokenizer ({first_line(error)}); fetch or save the file again") from error


def _build(
    directory: Path,
    name: str,
    built: BuiltClass,
    tokenizer_json: dict[str, Any],
    settings: dict[str, Any],
    named: Mapping[str, str | None],
) -> Tokenizer:
    """The tokenizer of a class of `BUILT`, before added tokens and post-processor."""
    for key in built.required:
        if not named[key]:
            raise ValueError(f"{directory}: {key} is {named[key]!r} in {CONFIG}; a {name} tokenizer needs one, name it")
    vocab, merges = (_vocabulary_from_json if tokenizer_json else _vocabulary_from_files)(
        directory, name, built, tokenizer_json
    )
    try:
        if built.model == WORD_PIECE:
            backend = Tokenizer(models.WordPiece(vocab, unk_token=named["unk_token"]))
        else:
            plain = {"fuse_unk": False, "continuing_subword_prefix": "", "end_of_word_suffix": ""}
            backend = Tokenizer(models.BPE(vocab, merges, **plain))
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"{directory}: vocabulary refused ({first_line(error)}); fetch the files again") from error
    normalizer = built.normalizer(settings)
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = built.pre_tokenizer(settings)
    backend.decoder = built.decoder
    return backend


Vocabulary = tuple[dict[str, int], list[tuple[str, str]]]  # ids of tokens, and merges


def _vocabulary_from_files(directory: Path, name: str, built: BuiltClass, _: dict[str, Any]) -> Vocabulary:
    """From vocab.txt, or from vocab.json and merges.txt."""
    missing = [file for file in built.files if not (directory / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{directory}: no {' and no '.join(missing)}; a {name} tokenizer needs tokenizer.json or "
            f"{' + '.join(built.files)}; add the file, or correct tokenizer_class in {CONFIG}"
        )
    paths = [str(directory / file) for file in built.files]
    try:
        if built.model == WORD_PIECE:
            return models.WordPiece.read_file(*paths), []
        return models.BPE.read_file(*paths)
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"{' + '.join(paths)}: not readable ({first_line(error)}); fetch the files again") from error


def _vocabulary_from_json(directory: Path, name: str, built: BuiltClass, tokenizer_json: dict[str, Any]) -> Vocabulary:
    """From tokenizer.json."""
    model = tokenizer_json["model"]
    found = model.get("type") or (BPE if "merges" in model else WORD_PIECE)  # old files name no type
    if found != built.model:
        raise ValueError(
            f"{directory / 'tokenizer.json'}: a {found} model, but its class is of the {name} kind ({built.model}); "
            f"set tokenizer_class in {CONFIG} to '{GENERIC_CLASS}' to take the file as it is"
        )
    return model["vocab"], [tuple(m.split(" ") if isinstance(m, str) else m) for m in model.get("merges", ())]


def _set_post_processor(
    backend: Tokenizer,
    built: BuiltClass,
    settings: dict[str, Any],
    named: Mapping[str, str | None],
    json_tokenizer: Tokenizer | None,
) -> None:
    """Sets what is put around a text, such as [CLS] and [SEP]."""
    if built.template is None and json_tokenizer is not None and json_tokenizer.post_processor is not None:
        backend.post_processor = json_tokenizer.post_processor
        return
    names = {key.removesuffix("_token"): token for key, token in named.items()}
    if built.template is not None:
        single, second = (part.format(**names).split() for part in (built.template, built.template_second))
    else:
        # AutoTokenizer ignores these two settings where there is a tokenizer.json.
        options = settings if json_tokenizer is None else {}
        before = [names["bos"]] if options.get("add_bos_token") and names["bos"] else []
        after = [names["eos"]] if options.get("add_eos_token") and names["eos"] else []
        single = [*before, "$A", *after]
        second = [*(f"{token}:1" for token in before), "$B:1", *(f"{token}:1" for token in after)]
    _set_template(backend, single, [*single, *second])


def _set_template(backend: Tokenizer, single: Sequence[str], pair: Sequence[str]) -> None:
    tokens = {part.rsplit(":", 1)[0] for part in pair if not part.startswith("$")}
    for token in tokens:
        if backend.token_to_id(token) is None:
            raise ValueError(f"{token!r} is put around every text, but has no id; name a token of the vocabulary")
    ids = [(token, backend.token_to_id(token)) for token in sorted(tokens)]
    backend.post_processor = processors.TemplateProcessing(list(single), list(pair), ids)


def _set_language(
    directory: Path, backend: Tokenizer, settings: dict[str, Any], named: Mapping[str, str | None], side: str
) -> None:
    """Puts the language of the side around a text, in place of the one that the tokenizer.json was saved with."""
    language = settings.get("src_lang")
    if side == "target":
        language = settings.get("tgt_lang") or language
    if not language or backend.post_processor is None:
        return
    template = json.loads(backend.post_processor.__getstate__())
    if template["type"] != "TemplateProcessing":
        return
    saved_tokens = template["special_tokens"].keys() - set(named.values())
    spellings = (language, f"__{language}__")  # the latter is PLBart's
    code = next((token for token in spellings if backend.token_to_id(token) is not None), None)
    if saved_tokens and code is None:
        raise ValueError(
            f"{directory}: the {side} language {language!r} is no token; correct src_lang or tgt_lang in {CONFIG}"
        )

    def parts(key: str) -> list[str]:
        shown = []
        for part in template[key]:
            ((kind, value),) = part.items()
            text = f"${value['id']}" if kind == "Sequence" else code if value["id"] in saved_tokens else value["id"]
            shown.append(f"{text}:{value['type_id']}")
        return shown

    if saved_tokens:
        _set_template(backend, parts("single"), parts("pair"))


def _declared_tokens(directory: Path, config: dict, settings: dict, saved_tokens: dict) -> list[AddedToken]:
    """The added tokens that the files list, in the order of their ids."""
    if "added_tokens_decoder" in config:
        listed = {int(index): _added_token(token) for index, token in config["added_tokens_decoder"].items()}
    else:
        special = {_content(value) for key, value in settings.items() if _is_named_token(key, value)}
        special |= {_content(value) for value in _extra_tokens(config, {})}
        listed = {
            index: AddedToken(content, normalized=content not in special, special=content in special)
            for content, index in read_json(directory / "added_tokens.json", optional=True).items()
        }
        listed |= {token["id"]: _added_token(token) for token in saved_tokens.get("added_tokens", ())}
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


def _flagged(value: str | dict[str, Any] | None, flags: dict[str, bool] | None) -> str | dict[str, Any] | None:
    """A mere string with the flags that its class gives it."""
    return {"content": value, **flags} if flags and isinstance(value, str) else value


def _added_token(value: str | dict[str, Any] | AddedToken, **flags: bool) -> AddedToken:
    if isinstance(value, AddedToken):
        return value
    if isinstance(value, str):
        return AddedToken(value, **flags)
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(value["content"], **{**{name: value[name] for name in names if name in value}, **flags})


def _is_named_token(key: str, value: Any) -> bool:
    return key.endswith("_token") and (value is None or isinstance(value, str) or _is_token_dict(value))


def _is_token_dict(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("content"), str)


def _content(value: str | dict[str, Any] | AddedToken | None) -> str | None:
    if isinstance(value, AddedToken):
        return value.content
    return value["content"] if isinstance(value, dict) else value
