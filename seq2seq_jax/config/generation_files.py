"""generation_config.json and its forerunners, read as transformers 5 acts on them, and written.

A `GenerationConfig` that a caller builds is strict. A file is read whatever it holds: what has no effect in torch is
left out, what can be meant in one way only is read so, and what torch refuses to generate with stays as it is, so that
`generate`, which checks, refuses it unless the caller gives another value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from seq2seq_jax.config.generation import INTEGERS, OPTIONAL_INTEGERS, SWITCHES, GenerationConfig, hashable
from seq2seq_jax.config.validation import check

NAMES = frozenset(f.name for f in dataclasses.fields(GenerationConfig))
IDS = ("decoder_start_token_id", "pad_token_id", "bos_token_id", "eos_token_id", "forced_bos_token_id",
       "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")  # fmt: skip
NUMBERS = (*(name for name, _ in (*INTEGERS, *OPTIONAL_INTEGERS)), *IDS, "bad_words_ids", "force_words_ids")
FOR_SAMPLING = ("temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
FOR_BEAMS = ("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty")
# Values at which torch leaves a processor or a strategy out.
WITHOUT_EFFECT: dict[str, Callable[[float], bool]] = {
    **dict.fromkeys(("top_p", "typical_p"), lambda v: v > 1),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff"), lambda v: not 0 < v < 1),
    **dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size"), lambda v: v < 0),
    **dict.fromkeys(("encoder_no_repeat_ngram_size", "penalty_alpha"), lambda v: v < 0),
    "num_beam_groups": lambda v: v < 1,
}
SMALLEST_TOP_P = 1e-7  # keeps the best token alone, as torch's 0 does
# Fields of torch's class that change no output: caches, compilation, what is returned, assistants' pace, metadata.
WITHOUT_OUTPUT = (
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory",
    "compile_config", "disable_compile", "continuous_batching_config", "return_dict_in_generate", "output_attentions",
    "output_hidden_states", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind", "transformers_version",
    "_from_model_config", "_commit_hash",
)  # fmt: skip
Note = Callable[[str], None]


def generation_from_hf(*sources: Mapping[str, Any], note: Note = lambda text: None) -> GenerationConfig:
    """Merges generation settings from the places where they hide; a later source wins.

    Args:
      sources: JSON objects, weakest first: the decoder's sub-config, the pair's config.json, generation_config.json.
        Fields that are null or of no concern to generation are passed over.
      note: is given a line for each value that is left out, read as another, or refused by `generate`.

    Returns:
      The settings; fields that no source names keep their defaults.
    """
    merged: dict[str, Any] = {}
    for source in sources:
        merged.update({k: v for k, v in source.items() if k in NAMES and v is not None})
    fields = {name: _read(name, value, note) for name, value in merged.items()}
    _drop_unused(fields, note)
    _shorten_least_length(fields, note)
    refused = {name: fault for name, value in fields.items() if (fault := _fault({name: value}))}
    groups = {name: fields[name] for name in ("num_beams", "num_beam_groups", "diversity_penalty") if name in fields}
    if not refused.keys() & groups.keys() and (fault := _fault(groups)):
        refused["num_beam_groups"] = fault
    for fault in refused.values():
        note(f"generate() will refuse: {fault}")
    out = GenerationConfig(**{name: value for name, value in fields.items() if name not in refused})
    for name in refused:
        object.__setattr__(out, name, hashable(fields[name]))
    return out


def check_as_torch(source: Mapping[str, Any], where: Any) -> None:
    """Raises ValueError for the few settings with which torch does not load a generation_config.json.

    Args:
      where: the file, for the message.
    """
    remedy = "mend the file, or give generation_config= in its place"
    longest, stopping, n = (source.get(k) for k in ("max_new_tokens", "early_stopping", "num_return_sequences"))
    beams = source.get("num_beams") or 1
    check(not _is_number(longest) or longest > 0, f"{where}: max_new_tokens is {longest!r}, not above 0; {remedy}")
    known = stopping in (None, True, False, "never")
    check(known, f"{where}: early_stopping is {stopping!r}, not true, false or 'never'; {remedy}")
    if _is_number(n) and _is_number(beams) and n > 1:
        drawn = beams == 1 and source.get("do_sample")
        check(drawn or n <= beams, f"{where}: num_return_sequences {n} is above num_beams {beams}; {remedy}")
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = source.get(name)
        forced = forced if isinstance(forced, list) else [] if forced is None else [forced]
        free = not forced or any(token not in (source.get("suppress_tokens") or ()) for token in forced)
        check(free, f"{where}: suppress_tokens holds all of {name} {forced}; {remedy}")


def note_unknown(source: Mapping[str, Any], note: Note) -> None:
    """A line for each field of a generation_config.json that might change outputs in torch and does nothing here."""
    for name, value in source.items():
        if name not in NAMES and name not in WITHOUT_OUTPUT and value not in (None, False):
            note(f"generation setting {name} {value!r} is unknown and has no effect")


def generation_to_hf(config: GenerationConfig, source: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `generation_config.json`: `source`, with the settings that have changed since it was read and
    those that differ from torch's defaults."""
    out, before = dict(source), generation_from_hf(source)
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if value != (getattr(before, f.name) if source.get(f.name) is not None else f.default):
            out[f.name] = _listed(value)
    return out


def _read(name: str, value: Any, note: Note) -> Any:
    """The value that is meant."""
    new = value
    if name in SWITCHES or name == "early_stopping":
        new = {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value
        new = bool(new) if _is_number(new) and new in (0, 1) else new
    elif name in NUMBERS:
        new = _whole(value)
    elif name == "top_p" and _is_number(value) and value == 0:
        new = SMALLEST_TOP_P
    if name in IDS and new is not None:
        new = _without_negative(name, new)
    if repr(new) != repr(value):
        note(f"{name} {value!r} is read as {new!r}")
    return new


def _without_negative(name: str, ids: Any) -> Any:
    """Ids below 0 mean none; an end token below 0 is one that never comes."""
    if isinstance(ids, list | tuple):
        return type(ids)(i for i in ids if not (_is_number(i) and i < 0))
    if not (_is_number(ids) and ids < 0):
        return ids
    return [] if name == "eos_token_id" else None


def _drop_unused(fields: dict[str, Any], note: Note) -> None:
    """Takes out what the strategy does not use and could not be given, and ways to search that torch passes over."""

    def now(name: str) -> Any:
        value = fields.get(name)
        return getattr(GenerationConfig(), name) if value is None or _fault({name: value}) else value

    def drop(name: str, reason: str) -> None:
        note(f"{name} {fields.pop(name)!r} is left out: {reason}")

    sampling, beams = now("do_sample"), fields.get("num_beams", 1) != 1
    if not beams and fields.get("num_beam_groups", 1) != 1:
        drop("num_beam_groups", "there is one beam")
    for name, value in list(fields.items()):
        if not _fault({name: value}):
            continue
        if name in FOR_SAMPLING and not sampling:
            drop(name, "do_sample is off")
        elif name in FOR_BEAMS and not beams:
            drop(name, "there is one beam")
        elif name in WITHOUT_EFFECT and _is_number(value) and WITHOUT_EFFECT[name](value):
            drop(name, "it has no effect in torch")
    contrastive = now("penalty_alpha") and not sampling and not beams and now("top_k") > 1
    if now("penalty_alpha") and not contrastive:
        drop("penalty_alpha", "contrastive search is without do_sample and beams, with top_k above 1")
    if now("prompt_lookup_num_tokens") and (sampling or beams or contrastive):
        drop("prompt_lookup_num_tokens", "it is for greedy search")


def _shorten_least_length(fields: dict[str, Any], note: Note) -> None:
    """A least length above the greatest is the greatest: torch suppresses the ends until there."""
    pairs = [("min_new_tokens", "max_new_tokens")]
    if not {"min_new_tokens", "max_new_tokens"} & fields.keys():
        pairs = [("min_length", "max_length")]
    for least, greatest in pairs:
        low, high = fields.get(least), fields.get(greatest)
        if _is_number(low) and _is_number(high) and low > high:
            fields[least] = high
            note(f"{least} {low} is read as {high}, since {greatest} is {high}")


def _fault(fields: Mapping[str, Any]) -> str | None:
    """What is wrong with settings, apart from all others."""
    if fields.keys() == {"num_beam_groups"}:  # judged with num_beams and diversity_penalty
        fields = {"num_beams": fields["num_beam_groups"], "diversity_penalty": 1.0, **fields}
    try:
        GenerationConfig(**fields)
    except (ValueError, TypeError) as error:
        return str(error)
    return None


def _whole(value: Any) -> Any:
    """Whole floats as ints, in lists too."""
    if isinstance(value, list | tuple):
        return type(value)(_whole(v) for v in value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _listed(value: Any) -> Any:
    """Tuples become lists, as JSON and torch have them."""
    return [_listed(v) for v in value] if isinstance(value, tuple) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
