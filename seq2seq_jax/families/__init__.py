"""The families of pretrained checkpoints. A family is one file; a new one is added to `FAMILIES`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from seq2seq_jax.config import TransformerConfig, nearest
from seq2seq_jax.families import bart, bert, gpt2
from seq2seq_jax.families.rules import ROLES, Family

FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in (bert, gpt2, bart)}
BY_MODEL_TYPE: dict[str, Family] = {t: family for family in FAMILIES.values() for t in family.model_types}


def family_of(hf: Mapping[str, Any]) -> Family:
    """The family that reads a config.json.

    Raises:
      ValueError: for a `model_type` that no family reads; names the nearest that one does.
    """
    model_type = hf.get("model_type")
    if model_type not in BY_MODEL_TYPE:
        raise ValueError(f"model_type {model_type!r} is not supported: {nearest(str(model_type), BY_MODEL_TYPE)}")
    return BY_MODEL_TYPE[model_type]


def with_defaults(hf: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with its torch class's defaults for the fields that it leaves out, under their newest names."""
    family = family_of(hf)
    renamed = dict(family.renamed)
    return {**family.defaults, **{renamed.get(name, name): value for name, value in hf.items()}}


def from_hf(hf: Mapping[str, Any], role: str, *, cross_attention_size: int | None = None) -> TransformerConfig:
    """The settings of a transformer from its config.json.

    Args:
      role: "encoder" or "decoder". cross_attention_size: width of the states that a decoder reads; None is its own
        width, which is what enc_to_dec_proj brings the encoder's states to.
    """
    family, full = family_of(hf), with_defaults(hf)
    if role not in ROLES:
        raise ValueError(f"role {role!r} is neither 'encoder' nor 'decoder'")
    settings = family.from_hf(full, role)
    if role == "decoder":
        settings["cross_attention_size"] = cross_attention_size or settings["hidden_size"]
    try:
        return TransformerConfig(family=family.name, source_json=json.dumps(dict(hf)), **settings)
    except ValueError as error:
        raise ValueError(f"the {role}'s config.json ({family.name}): {error}") from None


def to_hf(config: TransformerConfig, role: str) -> dict[str, Any]:
    """The config.json of a transformer: its source, with the fields that have changed since."""
    family, out = FAMILIES[config.family], config.source
    before = from_hf({"model_type": family.model_types[0], **out}, role)
    back = {new: old for old, new in dict(family.renamed).items()}
    for theirs, ours in family.fields[role].items():
        name = back[theirs] if theirs not in out and back.get(theirs) in out else theirs
        if getattr(config, ours) != getattr(before, ours) or name not in out:
            out[name] = getattr(config, ours)
    out.setdefault("model_type", family.model_types[0])
    return out
