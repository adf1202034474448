"""ml_collections configs of a run: every field of `TrainConfig` with its default, so that any can be set by flag."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from seq2seq_jax.config import TrainConfig


def train_config(values: Mapping[str, Any]) -> ConfigDict:
    """A ConfigDict of all fields of `TrainConfig`: its defaults, then `values`.

    Raises:
      KeyError: for a name in `values` that TrainConfig lacks (ml_collections names the nearest).
    """
    config = _defaults(TrainConfig)
    for free in ("warm_start", "generation"):
        config[free] = ConfigDict(dict(values.get(free, {})))
    config.update({name: value for name, value in values.items() if name not in ("warm_start", "generation")})
    return config.lock()


def _defaults(cls: type) -> ConfigDict:
    hints, out = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            out[field.name] = _defaults(hint)
        elif field.default_factory is not dataclasses.MISSING:
            out[field.name] = ConfigDict(field.default_factory())
        elif field.default in (None, dataclasses.MISSING):
            # An optional field is unset until somebody gives it a value of its type.
            kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            out[field.name] = config_dict.placeholder(kinds[0])
        else:
            out[field.name] = field.default
    return ConfigDict(out)
