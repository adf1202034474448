"""ml_collections configs of a run: every field of `TrainConfig` with its default, so that any can be set by flag."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from seq2seq_jax.config import TrainConfig

# Sections whose keys are not ours to list.
OPEN_SECTIONS = ("warm_start", "generation")


def train_config(values: Mapping[str, Any]) -> ConfigDict:
    """A ConfigDict of all fields of `TrainConfig`: its defaults, then `values`.

    Raises:
      KeyError: for a name in `values` that TrainConfig lacks (ml_collections names the nearest).
    """
    config = _defaults(TrainConfig)
    for name in OPEN_SECTIONS:
        config[name] = ConfigDict(dict(values.get(name, {})))
    config.update({name: value for name, value in values.items() if name not in OPEN_SECTIONS})
    config.lock()
    for name in OPEN_SECTIONS:
        config[name].unlock()
    return config


def _defaults(cls: type) -> ConfigDict:
    out = {}
    for field, hint in _fields(cls):
        if dataclasses.is_dataclass(hint):
            out[field.name] = _defaults(hint)
        elif field.default_factory is not dataclasses.MISSING:
            out[field.name] = ConfigDict(field.default_factory())
        elif field.default in (None, dataclasses.MISSING):
            # An optional field is unset until somebody gives it a value of its type.
            out[field.name] = config_dict.placeholder(_kinds(hint)[0])
        else:
            out[field.name] = field.default
    return ConfigDict(out)


def _fields(cls: type) -> list[tuple[dataclasses.Field, Any]]:
    hints = typing.get_type_hints(cls)
    return [(field, hints[field.name]) for field in dataclasses.fields(cls)]


def _kinds(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def describe(config: ConfigDict | None = None) -> str:
    """All fields of `TrainConfig`, one a line: name, type, default and meaning; and the value in `config`, where it has
    another."""
    rows = list(_described(TrainConfig, "config", config))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join("  ".join([*(text.ljust(width) for text, width in zip(row, widths)), row[3]]) for row in rows)


def _described(cls: type, where: str, config: Any) -> Iterator[tuple[str, str, str, str]]:
    for field, hint in _fields(cls):
        name = f"{where}.{field.name}"
        value = None if config is None else config[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _described(hint, name, value)
            continue
        kind = getattr(_kinds(hint)[0], "__name__", str(hint)) if field.name not in OPEN_SECTIONS else "settings"
        if typing.get_origin(hint) is tuple:
            kind = "tuple"
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = field.default
        shown = "(needed)" if default is dataclasses.MISSING else "(unset)" if default is None else repr(default)
        value = value.to_dict() if isinstance(value, ConfigDict) else value
        here = f" [here: {value!r}]" if value not in (None, default) else ""
        yield name, kind, shown, field.metadata["help"] + here
