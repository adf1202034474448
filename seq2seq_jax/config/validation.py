"""Checks of settings, and dataclasses of settings made from mappings and from command lines."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the known name nearest to `name`, and the known ones (of many, the near ones)."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=5, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(known)}" if len(known) <= 20 else f"{hint}near it: {', '.join(close)}"


def check(condition: bool, message: str) -> None:
    """A ValueError with `message`, unless the condition holds."""
    if not condition:
        raise ValueError(message)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_counts(config: Any, where: str, names: Iterable[str], low: int = 1) -> None:
    """A ValueError, unless each of the fields `names` is a whole number from `low` up, or None."""
    for name in names:
        value = getattr(config, name)
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        check(
            value is None or (is_integer and value >= low),
            f"{where}.{name} is {value!r}; give a whole number from {low} up",
        )


def check_choice(value: str, known: Iterable[str], where: str) -> None:
    """A ValueError that suggests the nearest, unless `value` is one of the known."""
    check(value in known, f"{where} {value!r} is unknown: {nearest(value, known)}")


def setting(default: Any = dataclasses.MISSING, *, help: str, may_change: bool = False) -> Any:
    """A dataclass field of a run, with its meaning.

    Args:
      default: without one, the field must be given; a mapping is copied for each instance.
      may_change: whether a run that goes on from a checkpoint may have another value than before.
    """
    metadata = {"help": " ".join(help.split()), "may_change": may_change}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def from_mapping(cls: type, values: Mapping[str, Any], where: str = "config") -> Any:
    """A dataclass from a mapping (an ml_collections.ConfigDict, say), nested ones too.

    Raises:
      ValueError: for a key that the dataclass lacks (names the nearest), one that it needs, or a value of another type
        than its field's.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for name in values:
        check(name in fields, f"{where}.{name} is unknown: {nearest(name, fields)}")
    for name, f in fields.items():
        needed = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        check(values.get(name) is not None or not needed, f"{where}.{name} is missing; give it a value")
    out = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            value = from_mapping(hint, value, f"{where}.{name}")
        out[name] = tuple(value) if isinstance(value, list) else value
        options = alternatives(hint)
        kinds = " or ".join(KINDS.get(typing.get_origin(option) or option, str(option)) for option in options)
        check(any(_has_type(out[name], option) for option in options), f"{where}.{name} is {value!r}; give {kinds}")
    return cls(**out)


KINDS = {
    bool: "True or False",
    float: "a number",
    int: "a whole number",
    str: "a text",
    tuple: "a tuple",
    types.NoneType: "None",
}


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of another type, itself."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _has_type(value: Any, hint: Any) -> bool:
    kind = typing.get_origin(hint) or hint
    if kind in (int, float):
        return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind)


def parse_settings(assignments: Iterable[str]) -> dict[str, Any]:
    """name=value texts from a command line; values are read as JSON where they are such (true, 3, [1, 2])."""
    out = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        check(bool(name and equals), f"setting {assignment!r} is unreadable; write it as name=value")
        try:
            out[name] = json.loads(value)
        except json.JSONDecodeError:
            out[name] = value
    return out


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of nested mappings; an empty mapping is a value."""
    out = {}
    for name, value in tree.items():
        nested = isinstance(value, Mapping) and value
        out |= flatten(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return out


def check_resumable(
    directory: Path,
    what: str,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    may_change: Collection[str] = (),
    remedy: str = "give another directory",
) -> None:
    """A ValueError that says what differs, unless `now` continues what `before` began.

    Args:
      what: what the directory holds ("step 3 of a run with another config").
      before, now: settings as nested mappings of JSON values.
      may_change: dotted names of fields that may differ.
    """
    before, now = flatten(before), flatten(now)
    names = [n for n in sorted({*before, *now}) if n not in may_change and before.get(n) != now.get(n)]
    changes = "; ".join(f"{n} was {before.get(n)!r} and is {now.get(n)!r}" for n in names)
    check(not names, f"{directory} holds {what}: {changes}; set that back to go on, or {remedy}")
