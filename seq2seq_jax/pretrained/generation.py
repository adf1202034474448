"""A pair's generation_config.json: read from the places where its settings may stand, and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seq2seq_jax.config import EncoderDecoderConfig, GenerationConfig, generation_from_hf, generation_to_hf
from seq2seq_jax.config.generation_files import check_as_torch, note_unknown
from seq2seq_jax.families import registry
from seq2seq_jax.weights.files import read_json
from seq2seq_jax.weights.report import Report
from seq2seq_jax.weights.special_tokens import TOKEN_FIELDS, token_fields


def read_generation(
    hf: Mapping[str, Any], file: Path, given: Any, report: Report
) -> tuple[GenerationConfig, dict[str, Any]]:
    """Generation settings, and the content of the generation_config.json that they come from.

    generation_config.json wins. Without one, settings in config.json and in its decoder section count (checkpoints of
    before transformers 4.26). Token ids that are missing are taken from config.json in either case.

    Args:
      hf: the pair's config.json.
      file: the path of generation_config.json, which may be missing.
      given: replaces the file, except for token ids that it leaves out: a GenerationConfig, a mapping with the file's
        fields, or an object with `to_dict` (transformers.GenerationConfig). None: the file counts.
    """
    content = read_json(file) if file.exists() else {}
    decoder, top = dict(hf.get("decoder", {})), dict(hf)
    # Old decoder sections list every default, max_length 20 among them.
    if decoder.get("max_length") == 20:
        del decoder["max_length"]
    if given is not None:
        content = _tokens_of(content)
    elif content:
        check_as_torch(content, file)
    if content or given is not None:
        decoder, top = _tokens_of(decoder), _tokens_of(top)
    elif hf.get("force_bos_token_to_be_generated"):  # the field of BART's files before forced_bos_token_id
        full = registry.with_defaults(top) if top.get("model_type") in registry.BY_MODEL_TYPE else top
        top["forced_bos_token_id"] = full.get("bos_token_id")
    if isinstance(given, GenerationConfig):
        tokens = generation_from_hf(decoder, top, content, note=report.note)
        missing = [name for name in TOKEN_FIELDS if getattr(given, name) is None]
        return given.replace(**{name: getattr(tokens, name) for name in missing}), {}
    if given is not None:
        given = given if isinstance(given, Mapping) else given.to_dict()
        content = {**content, **{k: v for k, v in given.items() if v is not None}}
    note_unknown(content, report.note)
    return generation_from_hf(decoder, top, content, note=report.note), content


def _tokens_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name in TOKEN_FIELDS}


def generation_file(
    generation: GenerationConfig, config: EncoderDecoderConfig, source: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of generation_config.json: `source` with the settings that have changed, and the pair's token ids."""
    return {**token_fields(config), **generation_to_hf(generation, source)}
