"""How a pair decodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seq2seq_jax.config.validation import check, nearest


@dataclass(frozen=True)
class GenerationConfig:
    """How to decode (transformers.GenerationConfig: same names, meanings and defaults).

    Lengths count decoder tokens, the start token included, in max_length and min_length, and not in max_new_tokens
    and min_new_tokens, which win. max_length None is 20 tokens beyond the prompt.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    do_sample: bool = False
    num_beams: int = 1
    num_return_sequences: int = 1
    early_stopping: bool | str = False
    length_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | tuple[int, ...] | None = None
    decoder_start_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    bos_token_id: int | None = None

    def __post_init__(self):
        for name in ("eos_token_id", "forced_eos_token_id"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        for name, low in (("num_beams", 1), ("num_return_sequences", 1), ("no_repeat_ngram_size", 0), ("top_k", 0)):
            value = getattr(self, name)
            check(isinstance(value, int) and value >= low, f"{name} is {value!r}; give a whole number from {low} up")
        for name in ("max_length", "max_new_tokens"):
            value = getattr(self, name)
            check(
                value is None or (isinstance(value, int) and value > 0),
                f"{name} is {value!r}; give a whole number above 0",
            )
        check(
            self.early_stopping in (True, False, "never"),
            f"early_stopping is {self.early_stopping!r}; give True, False or 'never'",
        )
        check(self.temperature > 0, f"temperature is {self.temperature!r}; give a number above 0, or do_sample=False")
        check(0 < self.top_p <= 1, f"top_p is {self.top_p!r}; give a number above 0, up to 1")
        check(self.repetition_penalty > 0, f"repetition_penalty is {self.repetition_penalty!r}; give a number above 0")

    def replace(self, **changes: Any) -> GenerationConfig:
        """A copy with `changes`; an unknown name is an error that names the nearest."""
        names = {f.name for f in dataclasses.fields(self)}
        for name in changes:
            check(name in names, f"generation setting {name!r} is unknown: {nearest(name, names)}")
        return dataclasses.replace(self, **changes)


def generation_from_hf(*sources: Mapping[str, Any]) -> GenerationConfig:
    """Merges generation settings from the places where they hide; a later source wins.

    Args:
      sources: JSON objects, weakest first: the decoder's sub-config, the pair's config.json, generation_config.json.
        Fields that are null or of no concern to generation are passed over.

    Returns:
      The settings; fields that no source names keep their defaults.
    """
    names = {f.name for f in dataclasses.fields(GenerationConfig)}
    merged: dict[str, Any] = {}
    for source in sources:
        merged.update({k: v for k, v in source.items() if k in names and v is not None})
    return GenerationConfig(**merged)


def generation_to_hf(config: GenerationConfig, source: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `generation_config.json`: `source` (unknown fields kept) with the settings that differ from
    torch's defaults or stand in `source`."""
    out = dict(source)
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        value = list(value) if isinstance(value, tuple) else value
        if f.name in out or value != f.default:
            out[f.name] = value
    return out
