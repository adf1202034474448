"""config.json files of any age, normalised as the config classes of transformers 5 normalise them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

# The names of torch's classes: a family's name, then one of these endings.
_CLASS = re.compile(r"(\w+?)(For[A-Z]\w*|(LMHead|WithLMHead|DoubleHeads|MT|Encoder)?Model|Encoder|Decoder)")
_CLASS_OF = {"gemma3": "gemma3_text"}  # the class of Gemma 3's text model has the name of the multimodal one
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id",
           "forced_eos_token_id")  # fmt: skip
# Whole numbers that may be null, also where the class has a number.
_MAYBE_WHOLE = ("num_key_value_heads", "head_dim", "sliding_window", "n_inner", "num_decoder_layers", "embedding_size",
                "decoder_vocab_size", "word_embed_proj_dim", "global_attn_every_n_layers",
                "sliding_window_pattern", "max_window_layers", "no_rope_layer_interval")  # fmt: skip
_MAYBE_NUMBER = ("final_logit_softcapping", "attn_logit_softcapping")
_NULL_IS_DEFAULT = ("attention_dropout", "tie_word_embeddings", "rope_parameters")
_OLD_ROPE = ("rope_scaling", "rope_theta")


def inferred_type(hf: Mapping[str, Any], known: Iterable[str]) -> str | None:
    """`model_type`, or else the one of `known` that has the torch class in `architectures`; None: neither."""
    if hf.get("model_type") is not None:
        return hf["model_type"]
    plain = {re.sub("[-_]", "", name): name for name in known}
    for architecture in hf.get("architectures") or ():
        match = _CLASS.fullmatch(str(architecture))
        name = match and match[1].lower()
        if name in plain or name in _CLASS_OF:
            return plain.get(name) or _CLASS_OF[name]
    return None


def normalised(
    hf: Mapping[str, Any], defaults: Mapping[str, Any], aliases: Mapping[str, str], old_rope: Mapping[str, Any]
) -> dict[str, Any]:
    """A config.json under the names of its torch class, the class's defaults filled in.

    Args:
      aliases: other names of fields (the class's attribute_map); where a file has both, they win, as in torch.
      old_rope: see `rope_parameters`.

    Raises:
      ValueError: naming a field whose value is not of its kind (a size as text, say), and the value.
    """
    fields = {name: value for name, value in hf.items() if name not in aliases}
    fields |= {aliases[name]: value for name, value in hf.items() if name in aliases}
    for name in _NULL_IS_DEFAULT:
        if name in fields and fields[name] is None:
            del fields[name]
    check_fields(fields, defaults)
    if "rope_parameters" in defaults:
        rope = rope_parameters(fields, defaults["rope_parameters"], old_rope)
        fields = {name: value for name, value in fields.items() if name not in _OLD_ROPE}
        fields["rope_parameters"] = rope
    return {**defaults, **fields}


def check_fields(fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raises ValueError for a field whose value is not of its default's kind, or a token id that is no whole number."""
    for name, value in fields.items():
        default = defaults.get(name)
        if name in _TOKENS:
            ids = value if isinstance(value, list) and name in ("eos_token_id", "forced_eos_token_id") else [value]
            wanted = None if value is None or all(map(_is_whole, ids)) else "a whole number"
        elif name in _MAYBE_WHOLE:
            wanted = None if value is None or _is_whole(value) else "a whole number, or null"
        elif name in _MAYBE_NUMBER:
            wanted = None if value is None or _is_number(value) else "a number from 0 up, or null"
        elif default is None or isinstance(default, Mapping | list | tuple):
            wanted = None
        elif isinstance(default, bool):
            wanted = None if value in (True, False) else "true or false"
        elif isinstance(default, int):
            several = value if name == "attention_window" and isinstance(value, list) else [value]
            wanted = None if all(map(_is_whole, several)) else "a whole number"
        elif isinstance(default, float):
            wanted = None if _is_number(value) else "a number from 0 up"
        else:
            wanted = None if isinstance(value, str) else "text"
        if wanted:
            raise ValueError(f"{name} is {'null' if value is None else repr(value)}; give {wanted}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def rope_parameters(
    fields: Mapping[str, Any], default: Mapping[str, Any], old_rope: Mapping[str, Any]
) -> dict[str, Any]:
    """`rope_parameters` of transformers 5, from these or from the older fields (convert_rope_params_to_dict there).

    Args:
      default: the class's own; by kind of layer in families whose kinds of layers turn differently.
      old_rope: key of rope_parameters -> the older field of config.json; by kind of layer where `default` is so. A kind
        of layer that has the key "rope_scaling" takes that field's entries.
    """
    scaling, given = fields.get("rope_scaling") or {}, fields.get("rope_parameters") or {}
    for name, value in (("rope_scaling", scaling), ("rope_parameters", given)):
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} is {value!r}; give a mapping, such as {{'rope_type': 'default'}}")
    if not isinstance(next(iter(default.values())), Mapping):
        return _one_rope(fields, scaling or given, default, old_rope)
    out = {}
    for kind, own in default.items():
        # As in torch, "rope_type" of rope_scaling counts here, and its older name "type" does not.
        entries = {
            **(given.get(kind) or {"rope_type": "default"}),
            **(scaling if old_rope[kind].get("rope_scaling") else {}),
        }
        out[kind] = _one_rope(fields, entries, own, old_rope[kind])
    return out


def _one_rope(fields, given, default, old_rope):
    older = {key: fields[name] for key, name in old_rope.items() if isinstance(name, str) and name in fields}
    out = {**default, **older, **given}
    return {**out, "rope_type": given.get("rope_type", given.get("type", "default"))}
