"""What became of every tensor of the files and every parameter of the model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

STATUSES = {
    "copied": "copied from the file",
    "initialised": "new, in no file",
    "tied": "stored once, together with another",
    "ignored": "in the file, and not needed",
    "cut": "of a layer that an option leaves out",
    "selected": "rows chosen",
    "resized": "rows added or removed",
    "other part": "of a part of the checkpoint that is not used",
    "passed through": "read by no forward pass, written back on export",
}


class Entry(NamedTuple):
    """One tensor or parameter: where it belongs, its name, one of `STATUSES`, and how."""

    side: str
    name: str
    status: str
    detail: str = ""


@dataclass
class Report:
    """What became of all tensors; `str(report)` is what scripts print."""

    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, side: str, name: str, status: str, detail: str = "") -> None:
        if status not in STATUSES:
            raise ValueError(f"status {status!r} is none of {', '.join(STATUSES)}")
        self.entries.append(Entry(side, name, status, detail))

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def of(self, status: str, side: str | None = None) -> list[Entry]:
        return [e for e in self.entries if e.status == status and side in (None, e.side)]

    def _counts(self) -> dict[str, str]:
        """How many tensors of each side have which status, such as "12 copied, 3 tied"."""
        out = {}
        for side in dict.fromkeys(entry.side for entry in self.entries):
            counts = Counter(entry.status for entry in self.entries if entry.side == side)
            out[side] = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
        return out

    def summary(self) -> str:
        """The counts in one line."""
        parts = [f"{side} {counts}" for side, counts in self._counts().items()]
        return "; ".join([*parts, *([f"{len(self.notes)} notes"] if self.notes else [])])

    def __str__(self) -> str:
        lines = []
        for side, counts in self._counts().items():
            lines.append(f"{side}: {counts}")
            for status in STATUSES:
                ways: dict[str, list[str]] = {}
                for entry in self.of(status, side):
                    if status != "copied" or entry.detail:
                        ways.setdefault(entry.detail, []).append(entry.name)
                for way, names in ways.items():
                    shown = ", ".join(names[:3]) + (f", and {len(names) - 3} more" if len(names) > 3 else "")
                    lines.append(f"  {status}{f' ({way})' if way else ''}: {shown}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])
