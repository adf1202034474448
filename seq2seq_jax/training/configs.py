"""ml_collections configs of a run: every field of `TrainConfig` with its default, so that any can be set by flag."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from seq2seq_jax.config import OPEN_SECTIONS, TrainConfig, alternatives, check_open_field, from_mapping


class OpenSection(ConfigDict):
    """A section of `OPEN_SECTIONS`: any of its known fields can be set, by flag too, whether or not the file has it.

    Raises:
      ValueError: for a flag of an unknown field; names the nearest.
    """

    def __init__(self, section: str, values: Mapping[str, Any]):
        super().__init__(dict(values), type_safe=False)
        object.__setattr__(self, "_section", section)

    def get_type(self, key: str) -> type:
        """Any type, which config_flags reads as a Python literal, or else as text."""
        check_open_field(self._section, key)
        if key not in self:  # config_flags asks for the type of each field that it will set, and adds none
            self[key] = None
        return object

    def lock(self) -> OpenSection:
        return self


class _OptionalParser(flags.ArgumentParser):
    """Reads None, or what another parser reads."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser, self.syntactic_help = parser, parser.syntactic_help

    def parse(self, argument: Any) -> Any:
        return None if argument in (None, "None") else self._parser.parse(argument)

    def flag_type(self) -> str:
        return self._parser.flag_type()


for _type, _parser in ((float, flags.FloatParser()), (int, flags.IntegerParser()), (str, flags.ArgumentParser())):
    config_flags.register_flag_parser_for_type(_type, _OptionalParser(_parser))


def train_config(values: Mapping[str, Any]) -> ConfigDict:
    """A ConfigDict of all fields of `TrainConfig`: its defaults, then `values`.

    Raises:
      KeyError: for a name in `values` that TrainConfig lacks (ml_collections names the nearest).
    """
    config = _defaults(TrainConfig)
    for name in OPEN_SECTIONS:
        config[name] = OpenSection(name, values.get(name, {}))
    config.update({name: value for name, value in values.items() if name not in OPEN_SECTIONS})
    return config.lock()


def resolve(config: ConfigDict, overridden: Collection[str] = ()) -> TrainConfig:
    """The run that a ConfigDict describes.

    Args:
      overridden: names of the fields that flags set (`flag.override_values`). Of num_steps and num_epochs, the one that
        a flag sets replaces the other one of the file.

    Raises:
      ValueError: for what is wrong in it.
    """
    values = config.to_dict()
    lengths = {"num_steps": 0, "num_epochs": 0.0}
    given = [name for name in lengths if name in overridden and values[name]]
    if len(given) == 1:
        values |= {name: zero for name, zero in lengths.items() if name != given[0]}
    return from_mapping(TrainConfig, values)


def _defaults(cls: type) -> ConfigDict:
    out = {}
    for field, hint in _fields(cls):
        if dataclasses.is_dataclass(hint):
            out[field.name] = _defaults(hint)
        elif field.default_factory is not dataclasses.MISSING:
            out[field.name] = ConfigDict(field.default_factory())
        elif field.default in (None, dataclasses.MISSING):
            # An optional field is unset until somebody gives it a value of its type.
            out[field.name] = config_dict.placeholder(alternatives(hint)[0])
        else:
            out[field.name] = field.default
    return ConfigDict(out)


def _fields(cls: type) -> list[tuple[dataclasses.Field, Any]]:
    hints = typing.get_type_hints(cls)
    return [(field, hints[field.name]) for field in dataclasses.fields(cls)]


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
        kind = getattr(alternatives(hint)[0], "__name__", str(hint)) if field.name not in OPEN_SECTIONS else "settings"
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
