"""State dicts as people save them: names with wrappers' prefixes, nested in other content, or under a prefix."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seq2seq_jax.weights.report import Report

# Parts of names that DataParallel, torch.compile, FSDP and activation checkpointing leave, in front or in the middle.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module")


def modern_name(name: str) -> str:
    """Old checkpoints say gamma and beta where new ones say weight and bias."""
    return re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))


def modern_names(stored: Mapping[str, Path], note: Callable[[str], None]) -> dict[str, tuple[Path, str]]:
    """Modern name -> (file, stored name). Parts of names that wrappers added are removed, which is noted.

    A wrapper in front of only some of the names stays: it is the prefix under which the model lies (see `rooted`).

    Args:
      stored: stored name -> file.

    Raises:
      ValueError: if two tensors have one modern name.
    """
    out: dict[str, tuple[Path, str]] = {}
    removed: Counter[tuple[Path, str]] = Counter()
    split = {name: name.split(".") for name in stored}
    front = 0
    while all(len(parts) > front + 1 and parts[front] in WRAPPERS for parts in split.values()) and split:
        front += 1
    for name, file in stored.items():
        parts = split[name]
        inner = [part for part in parts[front + 1 :] if part not in WRAPPERS]
        modern = modern_name(".".join([parts[front], *inner]))
        if modern in out:
            raise ValueError(f"{file}: {name!r} and {out[modern][1]!r} are one tensor, {modern!r}; keep one of them")
        out[modern] = (file, name)
        removed.update((file, part) for part in {*parts[:front], *(set(parts[front + 1 :]) - set(inner))})
    for (file, part), count in removed.items():
        note(f"{file.name}: '{part}.' is left out of {count} names")
    return out


def flat_tensors(
    content: Any, file: Path, is_tensor: Callable[[Any], bool], note: Callable[[str], None]
) -> dict[str, Any]:
    """The tensors in the content of a `.bin` file; names of nested mappings are joined by dots. What is no tensor is
    noted.

    Raises:
      ValueError: if there is none.
    """
    out: dict[str, Any] = {}
    others: dict[str, str] = {}

    def visit(value: Any, name: str) -> None:
        if is_tensor(value):
            out[name] = value
        elif isinstance(value, Mapping) and value:
            for key, inner in value.items():
                visit(inner, f"{name}.{key}" if name else str(key))
        else:
            others[name or "its content"] = type(value).__name__

    visit(content, "")
    shown = ", ".join(f"{name} ({kind})" for name, kind in list(others.items())[:3])
    shown += f" and {len(others) - 3} more" if len(others) > 3 else ""
    if not out:
        raise ValueError(f"{file} holds no tensors, only {shown or 'nothing'}; save a state dict (torch.save)")
    if others:
        note(f"{file.name}: {shown} is left out; it is no tensor")
    return out


class UnderRoot:
    """The tensors of a checkpoint that lie under a prefix of their names, by the names without it."""

    def __init__(self, checkpoint: Any, root: str):
        self._checkpoint, self._root = checkpoint, root
        self.directory = checkpoint.directory

    def __contains__(self, name: str) -> bool:
        return self._root + name in self._checkpoint

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._root) for name in self._checkpoint if name.startswith(self._root))

    def read(self, name: str) -> np.ndarray:
        return self._checkpoint.read(self._root + name)

    def file_of(self, name: str) -> Path:
        return self._checkpoint.file_of(self._root + name)

    def origin(self, name: str) -> str:
        return self._checkpoint.origin(self._root + name)


def rooted(
    checkpoint: Any, expected: Iterable[str], what: str, part: str, report: Report, other_prefixes: tuple[str, ...] = ()
) -> Any:
    """The checkpoint itself if it has some of the `expected` names, or else its tensors under the prefix that has them.

    Args:
      what: the owner of these names, for messages. part: the same for the report.
      other_prefixes: ends of prefixes under which like names belong to something else (a model's other half).

    Raises:
      ValueError: if they lie nowhere, or under two prefixes of which neither holds the other.
    """
    names, expected = list(checkpoint), list(expected)
    root = _root(names, expected, what, checkpoint.directory, other_prefixes)
    if not root:
        return checkpoint
    report.note(f"{checkpoint.directory.name}: the names of the {what} begin with {root!r}, which is left out")
    for name in names:
        if not name.startswith(root):
            report.add(part, name, "other part", f"not under {root!r}")
    return UnderRoot(checkpoint, root)


def _root(names: list[str], expected: list[str], what: str, directory: Path, other_prefixes: tuple[str, ...]) -> str:
    """The prefix under which most of the `expected` names are."""
    known, counts = frozenset(expected), Counter()
    for name in names:
        starts = (0, *(match.end() for match in re.finditer(r"\.", name)))
        counts.update(name[:start] for start in starts if name[start:] in known)
    counts = Counter({root: count for root, count in counts.items() if not root or not root.endswith(other_prefixes)})
    if counts[""]:
        return ""
    if not counts.total():
        shown = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise ValueError(
            f"{directory}: no tensor of a {what} is there; looked for {', '.join(map(repr, expected[:3]))} and their"
            f" like and found {shown}; give the directory whose config.json and weights belong together"
        )
    # The halves of a model have like names, so that some of the names match under a longer prefix too.
    likely = [root for root, count in counts.items() if 2 * count >= max(counts.values())]
    root = min(likely, key=len)
    other = next((r for r in likely if not r.startswith(root)), None)
    if other is not None:
        raise ValueError(f"{directory}: a {what} lies under {root!r} and under {other!r}; keep one of them")
    return root
