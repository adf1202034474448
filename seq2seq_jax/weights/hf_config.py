"""A pair's config.json, read and written, and the fields of it that a caller overrides."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from seq2seq_jax.config import (
    PAIR,
    EncoderDecoderConfig,
    TransformerConfig,
    nearest,
)
from seq2seq_jax.families import registry
from seq2seq_jax.families.fields import check_config, known_fields
from seq2seq_jax.parallel.axes import LOGICAL_AXIS_RULES
from seq2seq_jax.weights.files import read_json
from seq2seq_jax.weights.special_tokens import token_fields

PAIR_TYPES = (PAIR, "encoder_decoder")
SIDE_FLAGS = {
    "encoder": {"is_decoder": False, "add_cross_attention": False},
    "decoder": {"is_decoder": True, "add_cross_attention": True},
}


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of one side, a pair or a sequence-to-sequence model, its model_type and its sections' filled in.

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


def given_config(config: Any, role: str) -> dict[str, Any]:
    """The config.json of a side that a caller gives.

    Args:
      config: the content of a config.json (names that its class does not have are refused), the path of such a file, a
        config of transformers, or a TransformerConfig.
    """
    if isinstance(config, str | os.PathLike):
        return read_config(Path(config))
    if isinstance(config, Mapping):
        hf = registry.with_model_type(config, f"{role}_config")
        check_config(hf, registry.family_of(hf), role)
        return hf
    if isinstance(config, TransformerConfig):
        return config.source
    if hasattr(config, "to_dict"):
        return registry.with_model_type(config.to_dict(), f"{role}_config")
    raise ValueError(
        f"{role}_config is a {type(config).__name__}; give a config of transformers, the content of a config.json, or"
        " its path"
    )


def sides(config: EncoderDecoderConfig) -> Iterator[tuple[str, TransformerConfig]]:
    return iter((("encoder", config.encoder), ("decoder", config.decoder)))


def pair_from_hf(hf: Mapping[str, Any], mesh: Mesh | None, tie: Any = None) -> EncoderDecoderConfig:
    """The config of a pair, or of a sequence-to-sequence model, from its config.json; `mesh` divides its vocabularies.

    Raises:
      ValueError: if it is neither.
    """
    is_seq2seq = hf.get("model_type") not in PAIR_TYPES
    if is_seq2seq:
        encoder, decoder, tied = _seq2seq_sides(hf)
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
    source = hf if is_seq2seq else {k: v for k, v in hf.items() if k not in registry.ROLES}
    model_type = hf["model_type"] if is_seq2seq else PAIR
    return EncoderDecoderConfig(
        encoder,
        decoder,
        tie_encoder_decoder=tie,
        model_type=model_type,
        wrap_labels=is_seq2seq and model_type in registry.family_of(hf).seq2seq.wrap_labels,
        source_json=json.dumps(source),
    )


def with_tensors(hf: Mapping[str, Any], checkpoint: Any) -> dict[str, Any]:
    """config.json as the tensors of its checkpoint complete it (see `Family.with_tensors`)."""
    is_pair = hf.get("model_type") in PAIR_TYPES
    side = hf["decoder"] if is_pair else hf
    complete = registry.family_of(side).with_tensors
    if complete is None:
        return dict(hf)
    side = complete(side, checkpoint, "decoder." if is_pair else "")
    return {**hf, "decoder": side} if is_pair else side


def _seq2seq_sides(hf: Mapping[str, Any]) -> tuple[TransformerConfig, TransformerConfig, bool | str]:
    """Encoder and decoder of a sequence-to-sequence model, and what they share."""
    family = registry.family_of(hf)
    if family.seq2seq is None or hf["model_type"] not in family.seq2seq.architectures:
        known = ", ".join(support.model_type for support in registry.families() if support.seq2seq)
        raise ValueError(
            f"model_type {hf['model_type']!r} is one side, not an encoder-decoder pair; to join it with another"
            f" checkpoint, use from_encoder_decoder_pretrained (models of both sides are: {known})"
        )
    parts = {role: _section(hf, role) for role in registry.ROLES}
    encoder = registry.from_hf(parts["encoder"], "encoder", is_seq2seq=True)
    width = encoder.hidden_size
    decoder = registry.from_hf(parts["decoder"], "decoder", cross_attention_size=width, is_seq2seq=True)
    shared = family.seq2seq.shared and hf.get(family.seq2seq.shared_by, True)
    return encoder, decoder, "embeddings" if shared else False


def pair_to_hf(config: EncoderDecoderConfig) -> dict[str, Any]:
    """The pair's config.json: its source, with what has changed since."""
    out = config.source
    if not config.is_pair:
        return _seq2seq_to_hf(config, out)
    out.update(model_type=PAIR_TYPES[0], is_encoder_decoder=True, architectures=["EncoderDecoderModel"])
    out.update({"decoder_start_token_id": None, "pad_token_id": None, **token_fields(config)})
    if config.tie_encoder_decoder is True:
        out["tie_encoder_decoder"] = True
    elif config.tie_encoder_decoder == "embeddings":
        out["seq2seq_jax"] = {"tie_encoder_decoder": "embeddings"}
    for role, side in sides(config):
        out[role] = {**registry.to_hf(side), **SIDE_FLAGS[role]}
        if registry.family_of(out[role]).seq2seq is not None:
            out[role]["is_encoder_decoder"] = False
    return out


def _seq2seq_to_hf(config: EncoderDecoderConfig, out: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a sequence-to-sequence model, with the vocabulary that it has now."""
    layout = registry.family_of(out).seq2seq
    out["architectures"] = [layout.architectures[config.model_type]]
    for role, side in sides(config):
        section = out[role].get("text_config", out[role]) if layout.side_config else out
        name = "decoder_vocab_size" if role == "decoder" and "decoder_vocab_size" in out else "vocab_size"
        if section.get(name, side.vocab_size) != side.vocab_size:
            section[name] = side.vocab_size
    if layout.side_config and "vocab_size" in out:
        out["vocab_size"] = config.decoder.vocab_size
    return out


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
    """A side's config: in models with sections (T5Gemma) its section and the fields that apply to both."""
    layout = registry.family_of(hf).seq2seq
    return dict(layout.side_config(hf, role)) if layout is not None and layout.side_config and role in hf else dict(hf)


def side_from_hf(hf: Mapping[str, Any], role: str) -> TransformerConfig:
    """The settings of one side, from its own config.json or that of a sequence-to-sequence model."""
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
    known = {*known_fields(family, hf["model_type"], role), *out}
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
