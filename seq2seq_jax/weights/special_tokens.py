"""The start, pad and end tokens of a pair: where they come from, and the fields that they are written to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seq2seq_jax.config import EncoderDecoderConfig, GenerationConfig
from seq2seq_jax.weights.files import read_json
from seq2seq_jax.weights.report import Report

TOKEN_FIELDS = ("decoder_start_token_id", "bos_token_id", "pad_token_id", "eos_token_id")


def saved_tokens(
    config: EncoderDecoderConfig, hf: Mapping[str, Any], generation: GenerationConfig, report: Report
) -> dict[str, Any]:
    """Token ids of a pair that was saved, as fields of EncoderDecoderConfig.

    Its config.json wins, then `generation`. Ids outside the vocabulary are left out, which the report notes.
    """
    # T5Gemma's classes start with the decoder's bos token.
    nested_start = hf["decoder"].get("bos_token_id") if "decoder" in hf and not config.is_pair else None
    tokens = {
        "decoder_start_token_id": _first(
            hf.get("decoder_start_token_id"), generation.decoder_start_token_id, nested_start
        ),
        "pad_token_id": _first(hf.get("pad_token_id"), generation.pad_token_id),
        "eos_token_ids": _as_tuple(generation.eos_token_id),
    }
    return _inside_vocabulary(tokens, config.decoder.vocab_size, report)


def new_pair_tokens(
    hf: Mapping[str, Any],
    directory: Path | None,
    start: int | None,
    pad: int | None,
    eos: int | tuple[int, ...] | None,
    report: Report,
) -> dict[str, Any]:
    """Token ids of a new pair, as fields of EncoderDecoderConfig.

    Each is the given one, else that of the decoder's config.json, else that of its tokenizer's files. The end token
    serves as pad token where there is none. An id that nothing tells stays None, and is an error where it is needed.

    Args:
      hf: the decoder's config.json, with its class's defaults.
      directory: the decoder's checkpoint; None: there is none.
      start, pad, eos: what the caller gives; None: nothing.
    """
    named = _tokenizer_ids(directory) if directory else {}
    tokens = {
        "decoder_start_token_id": _first(
            hf.get("decoder_start_token_id"), hf.get("bos_token_id"), named.get("cls_token"), named.get("bos_token")
        ),
        "pad_token_id": _first(hf.get("pad_token_id"), named.get("pad_token")),
        "eos_token_ids": _as_tuple(_first(hf.get("eos_token_id"), named.get("sep_token"), named.get("eos_token"))),
    }
    tokens = _inside_vocabulary(tokens, hf["vocab_size"], report)
    given = {
        "decoder_start_token_id": start,
        "pad_token_id": pad,
        "eos_token_ids": None if eos is None else _as_tuple(eos),
    }
    tokens |= {name: value for name, value in given.items() if value is not None}
    if tokens["pad_token_id"] is None and tokens["eos_token_ids"]:
        tokens["pad_token_id"] = tokens["eos_token_ids"][0]
        report.note(f"the decoder has no pad token; its end token {tokens['pad_token_id']} is used")
    return tokens


def with_tokens_of(tokenizer: Any, config: EncoderDecoderConfig, report: Report) -> EncoderDecoderConfig:
    """The config with the ids that it lacks from the target's tokenizer (its start_id, end_id and pad_token_id).

    Raises:
      ValueError: for one that the tokenizer lacks too.
    """
    start, end, pad = tokenizer.start_id, tokenizer.end_id, tokenizer.pad_token_id
    tokens = {
        "decoder_start_token_id": start,
        "eos_token_ids": _as_tuple(end),
        "pad_token_id": _first(pad, end),
    }
    new = {name: value for name, value in tokens.items() if getattr(config, name) in (None, ())}
    for name, value in new.items():
        if value in (None, ()):
            name = name.replace("eos_token_ids", "eos_token_id")
            raise ValueError(f"{name} is known neither to the decoder nor to its tokenizer; give warm_start.{name}")
        report.note(f"{name} {value} comes from the target's tokenizer")
    return dataclasses.replace(config, **new)


def token_fields(config: EncoderDecoderConfig) -> dict[str, Any]:
    """The pair's token ids that are known, as fields of config.json and generation_config.json."""
    eos = config.eos_token_ids
    fields = {
        "decoder_start_token_id": config.decoder_start_token_id,
        "pad_token_id": config.pad_token_id,
        "eos_token_id": None if not eos else eos[0] if len(eos) == 1 else list(eos),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _as_tuple(ids: Any) -> tuple[int, ...]:
    return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)


def _inside_vocabulary(tokens: dict[str, Any], vocab_size: int, report: Report) -> dict[str, Any]:
    """The tokens without those that have an id outside the vocabulary, each of which is noted."""
    for name, value in tokens.items():
        if any(not 0 <= i < vocab_size for i in _as_tuple(value)):
            report.note(f"{name} {value} of the config is outside the vocabulary of {vocab_size} and is left out")
            tokens[name] = () if isinstance(value, tuple) else None
    return tokens


def _tokenizer_ids(directory: Path) -> dict[str, int]:
    """Ids of the special tokens ("cls_token" ...) that a tokenizer's files name."""
    contents: dict[str, str] = {}
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (directory / file).exists():
            for key, value in read_json(directory / file).items():
                text = value.get("content") if isinstance(value, Mapping) else value
                if key.endswith("_token") and isinstance(text, str):
                    contents[key] = text
    ids: dict[str, int] = {}
    if (directory / "tokenizer.json").exists():
        ids = {t["content"]: t["id"] for t in read_json(directory / "tokenizer.json").get("added_tokens", [])}
    elif (directory / "vocab.txt").exists():
        lines = (directory / "vocab.txt").read_text(encoding="utf-8").split("\n")
        ids = {token: i for i, token in enumerate(lines)}
    elif (directory / "vocab.json").exists():
        ids = read_json(directory / "vocab.json")
    return {key: ids[text] for key, text in contents.items() if text in ids}
