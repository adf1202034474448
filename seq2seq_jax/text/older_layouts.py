"""Sentencepiece models and other layouts without a `tokenizer.json`: transformers converts them to one.

Needs the extra `tokenizers` (transformers, sentencepiece, protobuf), but not torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from tokenizers import Regex, decoders

from seq2seq_jax.config.validation import first_line

SENTENCEPIECE = ("spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model", "tokenizer.model")
_UNIGRAM_AND_BPE, _NORMAL = (1, 2), 1  # TrainerSpec.ModelType and SentencePiece.Type of sentencepiece_model.proto
# The classes without a fast form that only call the sentencepiece library, as transformers' generic fast form does.
_GENERIC = ("BertGenerationTokenizer",)


def convert(directory: Path, model_config: dict[str, Any], output: Path, class_name: str | None) -> list[Path]:
    """Writes `tokenizer.json` and `tokenizer_config.json` into `output`: the tokenizer of `directory`, by transformers.

    Args:
      model_config: of the model that the tokenizer belongs to, or {}. class_name: the tokenizer class in the files.

    Returns:
      The files of `directory` that torch's class needs beside them.

    Raises:
      ImportError: the extra is not installed. ValueError: damaged files, or a tokenizer without a fast form.
    """
    found = [directory / name for name in SENTENCEPIECE if (directory / name).is_file()]
    kind = class_name or f"{model_config['model_type']} tokenizer"
    layout = found[0].name if found else "a vocabulary without tokenizer.json"
    transformers = _transformers(f"{directory}: {layout} of a {kind} is read by transformers")
    pieces = _pieces(found[0]) if found else ()
    theirs = _load(transformers, directory, model_config)
    generic = type(theirs).__name__ in _GENERIC
    if not theirs.is_fast and not generic:
        raise ValueError(
            f"{directory}: {type(theirs).__name__} has no fast form in transformers, so {layout} is not read; give a"
            " directory with tokenizer.json"
        )
    theirs.save_pretrained(output)
    if generic:
        tokens = {name: str(token) for name, token in theirs.special_tokens_map.items() if isinstance(token, str)}
        fast = transformers.PreTrainedTokenizerFast
        theirs = fast.from_pretrained(directory, vocab_file=str(found[0]), local_files_only=True, **tokens)
    backend = theirs.backend_tokenizer
    if generic:  # the sentencepiece library gives texts without spaces at their ends
        strip = decoders.Replace(Regex(r"^\s+|\s+$"), "")
        backend.decoder = decoders.Sequence([backend.decoder, decoders.Fuse(), strip])
    _check_pieces(directory, theirs, pieces)
    backend.save(str(output / "tokenizer.json"))
    return found if generic else []


def _transformers(purpose: str) -> ModuleType:
    try:
        import google.protobuf  # noqa: F401
        import sentencepiece  # noqa: F401
        import transformers
    except ImportError as error:
        raise ImportError(
            f"{purpose}, and {error.name} is not installed; run: pip install 'seq2seq_jax[tokenizers]'"
        ) from None
    return transformers


def _load(transformers: ModuleType, directory: Path, model_config: dict[str, Any]) -> Any:
    """AutoTokenizer's reading of a directory that may have no config.json of its own."""
    model_type = model_config.get("model_type")
    known = model_type in transformers.CONFIG_MAPPING
    config = transformers.AutoConfig.for_model(model_type) if known else transformers.PreTrainedConfig()
    config.tokenizer_class = model_config.get("tokenizer_class")
    try:
        return transformers.AutoTokenizer.from_pretrained(directory, config=config, local_files_only=True)
    except Exception as error:  # it raises many kinds, of missing packages too
        raise ValueError(
            f"{directory}: transformers cannot read this tokenizer ({first_line(error)}); give a directory with"
            " tokenizer.json"
        ) from error


def _pieces(path: Path) -> list[str]:
    """The pieces of a sentencepiece model that texts consist of."""
    from google.protobuf.message import DecodeError
    from transformers.convert_slow_tokenizer import import_protobuf

    try:
        proto = import_protobuf().ModelProto.FromString(path.read_bytes())
    except DecodeError:
        raise ValueError(f"{path}: not a sentencepiece model; fetch the file again") from None
    if not proto.pieces:
        raise ValueError(f"{path}: a sentencepiece model without pieces; fetch the file again")
    if proto.trainer_spec.model_type not in _UNIGRAM_AND_BPE:
        raise ValueError(
            f"{path}: a sentencepiece model of type {proto.trainer_spec.model_type} (word or char); only unigram and"
            " BPE models are read, so save the tokenizer with tokenizer.json"
        )
    return [piece.piece for piece in proto.pieces if piece.type == _NORMAL]


def _check_pieces(directory: Path, theirs: Any, pieces: Iterable[str]) -> None:
    vocab = theirs.get_vocab()
    lost = [piece for piece in pieces if piece not in vocab]
    if lost:
        raise ValueError(
            f"{directory}: {type(theirs).__name__} of transformers leaves out {len(lost)} pieces of its sentencepiece"
            f" model, such as {lost[0]!r}; give a directory with tokenizer.json"
        )
