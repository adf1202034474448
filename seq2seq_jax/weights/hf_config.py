"""A pair's config.json and generation_config.json, read and written; the fields that a caller overrides; token ids."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from seq2seq_jax.config import (
    PAIR,
    EncoderDecoderConfig,
    GenerationConfig,
    TransformerConfig,
    generation_from_hf,
    generation_to_hf,
    nearest,
)
from seq2seq_jax.config.generation_files import check_as_torch, note_unknown
from seq2seq_jax.families import registry
from seq2seq_jax.parallel.axes import LOGICAL_AXIS_RULES
from seq2seq_jax.weights.files import read_json
from seq2seq_jax.weights.report import Report

PAIR_TYPES = (PAIR, "encoder_decoder")
SIDE_FLAGS = {
    "encoder": {"is_decoder": False, "add_cross_attention": False},
    "decoder": {"is_decoder": True, "add_cross_attention": True},
}
# Fields that any config.json may have; the sizes are accepted under these names for every family.
COMMON_FIELDS = ("is_decoder", "add_cross_attention", "pad_token_id", "bos_token_id", "eos_token_id", "use_cache")
GENERIC_FIELDS = (
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
)
# What torch's classes do not have.
OWN_FIELDS = {
    "encoder": ("use_bidirectional_attention",),
    "decoder": ("cross_attention_every", "cross_attention_hidden_size"),
}
TOKEN_FIELDS = ("decoder_start_token_id", "bos_token_id", "pad_token_id", "eos_token_id")


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of one side, of a pair or of a whole model, with a model_type in it and in its sections.

    Raises:
      FileNotFoundError, ValueError: naming the file.
    """
    hf = read_json(path)
    sections = {role: hf[role] for role in registry.ROLES if isinstance(hf.get(role), Mapping)}
    if hf.get("model_type") is None and len(sections) == len(registry.ROLES):
        hf = {**hf, "model_type": PAIR_TYPES[0]}
    try:
        if hf.get("model_type") not in PAIR_TYPES:
            return registry.with_model_type(hf)
        return {**hf, **{r: registry.with_model_type(part, f"the {r} section") for r, part in sections.items()}}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def sides(config: EncoderDecoderConfig) -> Iterator[tuple[str, TransformerConfig]]:
    return iter((("encoder", config.encoder), ("decoder", config.decoder)))


def pair_from_hf(hf: Mapping[str, Any], mesh: Mesh | None, tie: Any = None) -> EncoderDecoderConfig:
    """The config of a pair, or of a sequence-to-sequence model, from its config.json; `mesh` divides its vocabularies.

    Raises:
      ValueError: if it is neither.
    """
    whole = hf.get("model_type") not in PAIR_TYPES
    if whole:
        encoder, decoder, tied = _whole_sides(hf)
    else:
        for role in registry.ROLES:
            if not isinstance(hf.get(role), Mapping):
                raise ValueError(f"the pair's config.json has no {role!r} section; it is not an encoder-decoder's")
        encoder = registry.from_hf(hf["encoder"], "encoder")
        cross, tied = hf["decoder"].get("cross_attention_hidden_size"), bool(hf.get("tie_encoder_decoder", False))
        if cross is not None and cross != encoder.hidden_size:
            raise ValueError(
                f"the decoder's cross_attention_hidden_size {cross} is not the encoder's hidden_size"
                f" {encoder.hidden_size}; remove it, or give decoder_cross_attention_hidden_size={encoder.hidden_size}"
            )
        decoder = registry.from_hf(hf["decoder"], "decoder", cross_attention_size=cross)
    if mesh is not None:
        parts = math.prod(mesh.shape.get(axis, 1) for axis in LOGICAL_AXIS_RULES["vocab"])
        encoder, decoder = (
            dataclasses.replace(c, padded_vocab_size=-(-c.vocab_size // parts) * parts) for c in (encoder, decoder)
        )
    if tie is None:
        own = hf.get("seq2seq_jax", {}).get("tie_encoder_decoder")
        tie = tied if own is None else own
    source = hf if whole else {k: v for k, v in hf.items() if k not in registry.ROLES}
    options = {"tie_encoder_decoder": tie, "source_json": json.dumps(source)}
    if whole:
        options["model_type"] = hf["model_type"]
        if hf["model_type"] in registry.family_of(hf).whole.last_label_first:
            options["labels_shift"] = "last"
    return EncoderDecoderConfig(encoder, decoder, **options)


def _whole_sides(hf: Mapping[str, Any]) -> tuple[TransformerConfig, TransformerConfig, bool | str]:
    """Encoder and decoder of a sequence-to-sequence model, and what they share."""
    family = registry.family_of(hf)
    if family.whole is None or hf["model_type"] not in family.whole.architectures:
        known = ", ".join(support.model_type for support in registry.families() if support.whole)
        raise ValueError(
            f"model_type {hf['model_type']!r} is one side, not an encoder-decoder pair; to join it with another"
            f" checkpoint, use from_encoder_decoder_pretrained (whole models are: {known})"
        )
    parts = {role: _section(hf, role) for role in registry.ROLES}
    encoder = registry.from_hf(parts["encoder"], "encoder", whole=True)
    width = encoder.hidden_size
    decoder = registry.from_hf(parts["decoder"], "decoder", cross_attention_size=width, whole=True)
    shared = family.whole.shared and hf.get(family.whole.shared_by, True)
    return encoder, decoder, "embeddings" if shared else False


def pair_to_hf(config: EncoderDecoderConfig) -> dict[str, Any]:
    """The pair's config.json: its source, with what has changed since."""
    out = config.source
    if not config.is_pair:
        return _whole_to_hf(config, out)
    out.update(model_type=PAIR_TYPES[0], is_encoder_decoder=True, architectures=["EncoderDecoderModel"])
    out.update(decoder_start_token_id=config.decoder_start_token_id, pad_token_id=config.pad_token_id)
    if config.eos_token_ids:
        out["eos_token_id"] = _short(config.eos_token_ids)
    if config.tie_encoder_decoder is True:
        out["tie_encoder_decoder"] = True
    elif config.tie_encoder_decoder == "embeddings":
        out["seq2seq_jax"] = {"tie_encoder_decoder": "embeddings"}
    for role, side in sides(config):
        out[role] = {**registry.to_hf(side, role), **SIDE_FLAGS[role]}
        if registry.family_of(out[role]).whole is not None:
            out[role]["is_encoder_decoder"] = False
    return out


def _whole_to_hf(config: EncoderDecoderConfig, out: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a sequence-to-sequence model, with the vocabulary that it has now."""
    whole = registry.family_of(out).whole
    out["architectures"] = [whole.architectures[config.model_type]]
    for role, side in sides(config):
        section = out[role].get("text_config", out[role]) if whole.nested else out
        name = "decoder_vocab_size" if role == "decoder" and "decoder_vocab_size" in out else "vocab_size"
        if section.get(name, side.vocab_size) != side.vocab_size:
            section[name] = side.vocab_size
    if whole.nested and "vocab_size" in out:
        out["vocab_size"] = config.decoder.vocab_size
    return out


def _short(ids: tuple[int, ...]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else list(ids)


def merged_generation(
    hf: Mapping[str, Any], file: Path, given: Any, report: Report
) -> tuple[GenerationConfig, dict[str, Any]]:
    """Generation settings from where they hide, and the content of the generation_config.json that they come from.

    generation_config.json wins; without one, settings in config.json and in its decoder section count (checkpoints of
    before v4.26). Token ids fall back to config.json in either case.

    Args:
      file: the path of generation_config.json, which may be missing.
      given: what takes its place, but for token ids that it leaves out: a GenerationConfig, a mapping that is read as
        the file is, or an object with `to_dict` (transformers.GenerationConfig); None: nothing does.
    """
    content = read_json(file) if file.exists() else {}
    decoder, top = dict(hf.get("decoder", {})), dict(hf)
    # Old decoder sections list every default, max_length 20 among them.
    if decoder.get("max_length") == 20:
        del decoder["max_length"]
    if given is not None:
        content = {k: v for k, v in content.items() if k in TOKEN_FIELDS}
    elif content:
        check_as_torch(content, file)
    if content or given is not None:
        decoder, top = ({k: v for k, v in c.items() if k in TOKEN_FIELDS} for c in (decoder, top))
    elif hf.get("force_bos_token_to_be_generated"):  # what BART's files said before forced_bos_token_id
        whole = top.get("model_type") in registry.BY_MODEL_TYPE
        top["forced_bos_token_id"] = (registry.with_defaults(top) if whole else top).get("bos_token_id")
    if isinstance(given, GenerationConfig):
        tokens = generation_from_hf(decoder, top, content, note=report.note)
        missing = [name for name in TOKEN_FIELDS if getattr(given, name) is None]
        return given.replace(**{name: getattr(tokens, name) for name in missing}), {}
    if given is not None:
        given = given if isinstance(given, Mapping) else given.to_dict()
        content = {**content, **{k: v for k, v in given.items() if v is not None}}
    note_unknown(content, report.note)
    return generation_from_hf(decoder, top, content, note=report.note), content


def pair_tokens(
    config: EncoderDecoderConfig, hf: Mapping[str, Any], generation: GenerationConfig, report: Report
) -> dict[str, Any]:
    """Token ids of a fine-tuned pair, as fields of its config; ids outside the vocabulary are left out and noted."""
    eos = generation.eos_token_id
    start = None
    if not config.is_pair and "decoder" in hf:  # T5Gemma's classes
        start = hf["decoder"].get("bos_token_id")
    found = {
        "decoder_start_token_id": _first(hf.get("decoder_start_token_id"), generation.decoder_start_token_id, start),
        "pad_token_id": _first(hf.get("pad_token_id"), generation.pad_token_id),
        "eos_token_ids": () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos),
    }
    return _inside(found, config.decoder.vocab_size, report)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _inside(found: dict[str, Any], vocab_size: int, report: Report) -> dict[str, Any]:
    for name, value in found.items():
        ids = value if isinstance(value, tuple) else () if value is None else (value,)
        if any(not 0 <= i < vocab_size for i in ids):
            report.note(f"{name} {value} of the config is outside the vocabulary of {vocab_size} and is left out")
            found[name] = () if isinstance(value, tuple) else None
    return found


def derive_tokens(
    hf: Mapping[str, Any],
    directory: Path | None,
    start: int | None,
    pad: int | None,
    eos: int | tuple[int, ...] | None,
    report: Report,
) -> dict[str, Any]:
    """Token ids of a new pair: what is given, else the decoder's config.json, else its tokenizer's files.

    What none of them tells stays unset, and is an error where it is needed.
    """
    named = _tokenizer_ids(directory) if directory else {}
    given = {"decoder_start_token_id": start, "pad_token_id": pad, "eos_token_ids": eos}
    config_eos = hf.get("eos_token_id")
    found = {
        "decoder_start_token_id": _first(hf.get("decoder_start_token_id"), hf.get("bos_token_id"),
                                         named.get("cls_token"), named.get("bos_token")),
        "pad_token_id": _first(hf.get("pad_token_id"), named.get("pad_token")),
        "eos_token_ids": _first(config_eos, named.get("sep_token"), named.get("eos_token")),
    }  # fmt: skip
    as_tuple = lambda v: () if v is None else (v,) if isinstance(v, int) else tuple(v)
    found["eos_token_ids"] = as_tuple(found["eos_token_ids"])
    found = _inside(found, hf["vocab_size"], report)
    for name, value in given.items():
        if value is not None:
            found[name] = as_tuple(value) if name == "eos_token_ids" else value
    if found["pad_token_id"] is None and found["eos_token_ids"]:
        found["pad_token_id"] = found["eos_token_ids"][0]
        report.note(f"the decoder has no pad token; its end token {found['pad_token_id']} is used")
    return found


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


def generation_file(generation: GenerationConfig, config: EncoderDecoderConfig, source: Mapping[str, Any]):
    """The content of generation_config.json, with the pair's token ids."""
    out = generation_to_hf(generation, source)
    tokens = {"decoder_start_token_id": config.decoder_start_token_id, "pad_token_id": config.pad_token_id}
    if config.eos_token_ids:
        tokens["eos_token_id"] = _short(config.eos_token_ids)
    return {**{k: v for k, v in tokens.items() if v is not None}, **out}


def split_overrides(overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """encoder_<field> and decoder_<field> arguments, by side."""
    out: dict[str, dict[str, Any]] = {"encoder": {}, "decoder": {}}
    for name, value in overrides.items():
        role, _, rest = name.partition("_")
        if role not in out or not rest:
            raise ValueError(f"argument {name!r} is unknown; fields of the sides begin with 'encoder_' or 'decoder_'")
        out[role][rest] = value
    return out


def _section(hf: Mapping[str, Any], role: str) -> dict[str, Any]:
    """A side's part of config.json: a section of it in models that have one (T5Gemma), with what stands above it."""
    whole = registry.family_of(hf).whole
    return dict(whole.nested(hf, role)) if whole is not None and whole.nested and role in hf else dict(hf)


def side_from_hf(hf: Mapping[str, Any], role: str) -> TransformerConfig:
    """The settings of one side, from its own config.json or that of a whole model."""
    return registry.from_hf(_section(hf, role), role)


def resizes(options: Mapping[str, Any]) -> bool:
    """Whether the options ask for another length of the position table."""
    return any(name in options for name in ("max_position_embeddings", "n_positions"))


def overridden(
    hf: Mapping[str, Any], role: str, options: Mapping[str, Any], depth: int
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """A side's config.json with the caller's fields, and which layers of the file are kept.

    Args:
      depth: how many layers the file has.
    """
    options, family, out = dict(options), registry.family_of(hf), _section(hf, role)
    keep = options.pop("keep_layers", None)
    if keep is not None:
        keep = tuple(keep)
        if "num_hidden_layers" in options:
            raise ValueError(f"{role}_keep_layers and {role}_num_hidden_layers are both given; give one of them")
        if not keep or any(not 0 <= i < depth for i in keep):
            raise ValueError(f"{role}_keep_layers is {keep}, and the checkpoint has layers 0 to {depth - 1}")
        options["num_hidden_layers"] = len(keep)
    known = {*family.defaults[hf["model_type"]], *out, *COMMON_FIELDS, *GENERIC_FIELDS, *OWN_FIELDS[role]}
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"{role}_{name} is no field of a {family.name} config: {nearest(name, known)}")
        field = family.field(name, role)
        others = [n for n, same in family.aliases_of(hf["model_type"]).items() if same == field and n in out]
        out |= dict.fromkeys((field, *others), value)
    layers = registry.from_hf(out, role).stored_layers
    if keep is None:
        if layers > depth:
            raise ValueError(f"{role}_num_hidden_layers is {layers}, and the checkpoint has {depth} layers")
        keep = tuple(range(layers))
    return out, keep
