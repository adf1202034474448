"""From the tokenizer files of a directory to a `tokenizers.Tokenizer`, built as transformers 5 builds it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, processors

from seq2seq_jax.text import sentencepiece_model
from seq2seq_jax.text.gguf_tokenizer import read_gguf_tokenizer
from seq2seq_jax.text.sentencepiece_model import SentencePieceModel, read_sentencepiece
from seq2seq_jax.text.tokenizer_classes import (
    AS_FILED,
    BPE,
    CLASSES,
    FILED_MODEL_TYPES,
    KINDS,
    MARIAN,
    MERGES,
    MODEL_TYPES,
    SENTENCEPIECE,
    UNIGRAM,
    VOCAB_TXT,
    WORD_PIECE,
    Kind,
)
from seq2seq_jax.text.tokenizer_parts import Context
from seq2seq_jax.weights.gguf_files import find_gguf

CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
FILES = ("tokenizer.json", CONFIG, SPECIAL_TOKENS, "added_tokens.json", *VOCAB_TXT, *MERGES, *SENTENCEPIECE, *MARIAN)

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OTHER_SIDE = "\uf8ff"  # begins the pieces that only the other language of a Marian model has: no text matches them


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

    A GGUF file's is built where it is `directory` itself, or lies there without tokenizer files.

    Args:
      side: "source" or "target", for the tokenizers that treat the two differently (Marian, mBART, PLBart).

    Source: `AutoTokenizer.from_pretrained` and `TokenizersBackend` of transformers 5. As there, the classes of `KINDS`
    take only vocabulary, merges, added tokens and normalization rules from a `tokenizer.json`; how text is cut follows
    from the class and `tokenizer_config.json`. Every other class is its `tokenizer.json`.

    Raises:
      FileNotFoundError: no tokenizer files. ValueError: broken files, or files of a kind that is not known.
    """
    gguf = None if any((directory / name).is_file() for name in FILES) else find_gguf(directory)
    if gguf is not None:
        backend, named, settings = read_gguf_tokenizer(gguf)
        config = {**settings, "tokenizer_class": AS_FILED}
        return TokenizerParts(backend, {**dict.fromkeys(NAMED), **named}, settings, {CONFIG: config})
    config = read_json(directory / CONFIG)
    special_tokens_map = read_json(directory / SPECIAL_TOKENS)
    filed, whole = _read_tokenizer_json(directory / "tokenizer.json")
    class_name = config.get("tokenizer_class") or model_config.get("tokenizer_class")
    name = _kind(directory, class_name, model_config.get("model_type"), filed)
    kind = KINDS.get(name)

    # What the directory says elsewhere goes into the config, so that it is saved with the tokenizer.
    own_name = AS_FILED if kind is None else f"{name}Tokenizer"
    config = {**config, "tokenizer_class": class_name or own_name}
    if filed.get("truncation"):
        config.setdefault("truncation_side", filed["truncation"].get("direction", "Right").lower())
    if filed.get("padding") and kind is None:
        config.setdefault("pad_token", filed["padding"]["pad_token"])
    files = {CONFIG: config, SPECIAL_TOKENS: special_tokens_map} if special_tokens_map else {CONFIG: config}
    # added_tokens_decoder came with the newer layout, in which special_tokens_map.json is only a copy.
    settings = config if "added_tokens_decoder" in config else {**config, **special_tokens_map}
    settings = {**(kind.settings if kind else {}), **settings}

    values = {**(kind.tokens if kind else {}), **{k: v for k, v in settings.items() if _is_named_token(k, v)}}
    if kind:
        values = {k: _flagged(v, kind.flags.get(k)) for k, v in values.items()}
    named = {key: _content(values.get(key)) for key in NAMED}
    listed = _extra_tokens(config, settings)
    if kind is None:
        backend, extra = whole, listed
    else:
        vocabulary = _read_vocabulary(directory, name, kind, filed, side)
        context = Context(settings, named, vocabulary.charsmap, vocabulary.model, side)
        backend = _build(directory, name, kind, vocabulary, context)
        extra = listed or [*_unsplit_pieces(kind, vocabulary), *kind.extra(context)]
        if kind.by_sentencepiece:
            files.update({file: (directory / file).read_bytes() for file in vocabulary.files})
    _add_tokens(backend, _declared_tokens(directory, config, settings, filed), values, extra)
    if kind:
        _set_post_processor(backend, kind, context, whole)
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
        return token.removeprefix(_OTHER_SIDE).replace("\u2581", " ")

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


class _Vocabulary(NamedTuple):
    """Ids of tokens, or scores in the order of the ids; and what else the same files say."""

    tokens: dict[str, int] | list[tuple[str, float]]
    algorithm: str
    merges: tuple[tuple[str, str], ...] = ()
    charsmap: bytes = b""
    model: SentencePieceModel | None = None
    files: tuple[str, ...] = ()


def _kind(directory: Path, class_name: str | None, model_type: str | None, filed: dict[str, Any]) -> str:
    """The name of a kind, or `AS_FILED`."""
    present = {name for name in FILES if (directory / name).is_file()}
    if not present & {"tokenizer.json", "vocab.json", *VOCAB_TXT, *SENTENCEPIECE}:
        raise FileNotFoundError(
            f"{directory}: no tokenizer files; looked for tokenizer.json, vocab.txt, vocab.json + merges.txt, "
            f"{', '.join(SENTENCEPIECE)} and one .gguf file; pass the directory that holds one of these"
        )
    if class_name:
        name = CLASSES.get(class_name.removesuffix("Fast").removesuffix("Tokenizer"))
    else:
        name = MODEL_TYPES.get(model_type)
    if filed and (name is None or model_type in FILED_MODEL_TYPES or (name == "Llama" and _is_byte_level(filed))):
        return AS_FILED
    if name and filed and KINDS[name].by_sentencepiece and not present & set(KINDS[name].files):
        return AS_FILED
    if name:
        return name
    if not class_name and not model_type and "vocab.txt" in present:
        return "Bert"
    raise ValueError(
        f"{directory}: unknown tokenizer kind (tokenizer_class {class_name!r}, model_type {model_type!r}) for "
        f"{', '.join(sorted(present))}; name one of {', '.join(KINDS)} (such as 'T5Tokenizer') as tokenizer_class in "
        f"{CONFIG}, or save the tokenizer with tokenizer.json"
    )


def _is_byte_level(filed: dict[str, Any]) -> bool:
    """Whether a `tokenizer.json` cuts bytes, as LLaMA 3's does; torch then takes it as it is."""
    step = filed.get("pre_tokenizer") or {}
    return any(part.get("type") == "ByteLevel" for part in step.get("pretokenizers", [step]))


def _read_vocabulary(directory: Path, name: str, kind: Kind, filed: dict[str, Any], side: str) -> _Vocabulary:
    """From `tokenizer.json`, or else from the older files."""
    if filed and not kind.by_sentencepiece:
        return _filed_vocabulary(directory, name, kind, filed)
    if kind.files == SENTENCEPIECE:
        found = [file for file in SENTENCEPIECE if (directory / file).is_file()]
        missing = [] if found else [" or ".join(SENTENCEPIECE)]
    else:
        found, missing = kind.files, [file for file in kind.files if not (directory / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{directory}: no {' and no '.join(missing)}; a {name} tokenizer needs "
            f"{'' if kind.by_sentencepiece else 'tokenizer.json or '}"
            f"{(' or ' if kind.files == SENTENCEPIECE else ' + ').join(kind.files)}; add the file, or correct "
            f"tokenizer_class in {CONFIG}"
        )
    paths = [directory / file for file in found]
    if kind.files == MARIAN:
        return _marian_vocabulary(paths[0 if side == "source" else 1], paths[2])
    if kind.files == SENTENCEPIECE:
        model = read_sentencepiece(paths[0])
        algorithm = model.algorithm if kind.by_sentencepiece else kind.model
        if algorithm == UNIGRAM:
            tokens = model.search_scores() if kind.by_sentencepiece else model.scores()
            return _Vocabulary(tokens, UNIGRAM, (), model.charsmap, model, (found[0],))
        tokens = {piece.text: i for i, piece in enumerate(model.pieces)}
        return _Vocabulary(tokens, BPE, tuple(sentencepiece_model.merges(tokens)), model.charsmap, model, (found[0],))
    try:
        if kind.model == WORD_PIECE:
            return _Vocabulary(models.WordPiece.read_file(str(paths[0])), WORD_PIECE)
        vocab, merges = models.BPE.read_file(*map(str, paths))
        return _Vocabulary(vocab, BPE, tuple(merges))
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(
            f"{' + '.join(map(str, paths))}: not readable ({_reason(error)}); fetch the files again"
        ) from error


def _filed_vocabulary(directory: Path, name: str, kind: Kind, filed: dict[str, Any]) -> _Vocabulary:
    model = filed["model"]
    found = model.get("type") or (BPE if "merges" in model else WORD_PIECE)  # old files name no type
    if found != kind.model:
        raise ValueError(
            f"{directory / 'tokenizer.json'}: a {found} model, but its class is of the {name} kind ({kind.model}); "
            f"set tokenizer_class in {CONFIG} to '{AS_FILED}' to take the file as it is"
        )
    merges = tuple(tuple(m.split(" ") if isinstance(m, str) else m) for m in model.get("merges", ()))
    step = filed.get("normalizer") or {}
    rules = [part for part in step.get("normalizers", [step]) if part.get("type") == "Precompiled"]
    charsmap = base64.b64decode(rules[0]["precompiled_charsmap"]) if rules else b""
    vocab = [tuple(token) for token in model["vocab"]] if found == UNIGRAM else model["vocab"]
    return _Vocabulary(vocab, found, merges, charsmap)


def _marian_vocabulary(model_path: Path, vocab_path: Path) -> _Vocabulary:
    """One side's pieces under the ids of `vocab.json`, which both sides share.

    In torch a run of characters that this side does not know gets an id if the other side has just it as a piece; here
    it is unknown.
    """
    ids, model = read_json(vocab_path), read_sentencepiece(model_path)
    if model.algorithm != UNIGRAM:
        raise ValueError(f"{model_path}: a {model.algorithm} model; Marian's are unigram models, fetch the file again")
    if sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(f"{vocab_path}: its ids are not 0 to {len(ids) - 1}, each once; fetch the file again")
    scores = dict(model.search_scores())
    special = {piece.text for piece in model.pieces if piece.is_control or piece.is_unknown}
    strange = [text for text in scores if text not in ids and text not in special]
    if strange:
        raise ValueError(
            f"{vocab_path}: has no id for {len(strange)} pieces of {model_path.name}, such as {strange[0]!r}; "
            "fetch both files from one checkpoint"
        )
    lowest = min(scores.values())

    def entry(token: str) -> tuple[str, float]:
        own = token in scores or token.startswith((">>", "<"))
        return (token if own else _OTHER_SIDE + token), scores.get(token, lowest)

    return _Vocabulary([entry(token) for token in sorted(ids, key=ids.get)], UNIGRAM, (), model.charsmap, model, MARIAN)


def _unsplit_pieces(kind: Kind, vocabulary: _Vocabulary) -> list[AddedToken]:
    """The pieces of a sentencepiece model that become added tokens, and Marian's codes of target languages."""
    if kind.files == MARIAN:
        codes = (token for token, _ in vocabulary.tokens if token.startswith(">>") and token.endswith("<<"))
        return [AddedToken(code, normalized=False) for code in codes]
    if vocabulary.model is None or kind.by_sentencepiece:
        return []
    pieces = [piece for piece in vocabulary.model.pieces if piece.is_user_defined or piece.is_control]
    return [AddedToken(piece.text, normalized=False, special=piece.is_control) for piece in pieces]


def _build(directory: Path, name: str, kind: Kind, vocabulary: _Vocabulary, context: Context) -> Tokenizer:
    """The tokenizer of a kind, before added tokens and post-processor."""
    for key in kind.required:
        if not context.named[key]:
            raise ValueError(
                f"{directory}: {key} is {context.named[key]!r} in {CONFIG}; a {name} tokenizer needs one, name it"
            )
    tokens, unk = vocabulary.tokens, context.named["unk_token"]
    if vocabulary.model is not None and vocabulary.algorithm == UNIGRAM:
        tokens = kind.arrange(tokens, context)
    try:
        if vocabulary.algorithm == WORD_PIECE:
            backend = Tokenizer(models.WordPiece(tokens, unk_token=unk))
        elif vocabulary.algorithm == BPE:
            options = dict(kind.options)
            if kind.by_sentencepiece:
                options["byte_fallback"] = vocabulary.model.byte_fallback
            known = {"unk_token": unk} if kind.named_unk else {}
            backend = Tokenizer(models.BPE(tokens, list(vocabulary.merges), **options, **known))
        else:
            fallback = kind.by_sentencepiece and vocabulary.model.byte_fallback
            backend = Tokenizer(models.Unigram(tokens, kind.unk_id(tokens, context), fallback))
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"{directory}: vocabulary refused ({_reason(error)}); fetch the files again") from error
    for step in ("normalizer", "pre_tokenizer", "decoder"):
        made = getattr(kind, step)(context)
        if made is not None:
            setattr(backend, step, made)
    if name == "Marian":
        backend.decoder = decoders.Sequence([decoders.Replace(_OTHER_SIDE, ""), backend.decoder])
    return backend


def _set_post_processor(backend: Tokenizer, kind: Kind, context: Context, whole: Tokenizer | None) -> None:
    """What is put around a text, such as [CLS] and [SEP]."""
    if whole is not None and whole.post_processor is not None and (kind.around is None or kind.filed_around):
        backend.post_processor = whole.post_processor
        return
    names = {key.removesuffix("_token"): token for key, token in context.named.items()}
    names["lang"] = kind.language(context)
    if kind.around is not None:
        single, second = kind.around.split(), kind.around_second.split()
    else:
        # torch drops these two settings where there is a tokenizer.json.
        asked = context.settings if whole is None else {}
        before = ["{bos}"] if asked.get("add_bos_token") and names["bos"] else []
        after = ["{eos}"] if asked.get("add_eos_token") and names["eos"] else []
        single, second = [*before, "$A", *after], [*(f"{b}:1" for b in before), "$B:1", *(f"{a}:1" for a in after)]

    def filled(parts: list[str]) -> list[str]:
        return [part.format(**names) for part in parts if part != "{lang}" or names["lang"]]

    single, second = filled(single), filled(second)
    pair = [*single, *second] if second else [p for part in single for p in ((part, "$B") if part == "$A" else (part,))]
    tokens = {token for token in names.values() if token and any(part.rsplit(":", 1)[0] == token for part in pair)}
    for token in tokens:
        if backend.token_to_id(token) is None:
            raise ValueError(f"{token!r} is put around every text, but has no id; name a token of the vocabulary")
    ids = [(token, backend.token_to_id(token)) for token in tokens]
    backend.post_processor = processors.TemplateProcessing(single, pair, ids)


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


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
