"""What a person sees of a program that runs long: lines of text and progress bars."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from seq2seq_jax.parallel.multihost import is_first

SECONDS = 10.0


def log(text: object) -> None:
    """Prints a line on standard output, above a progress bar if there is one, from the first process alone."""
    if is_first():
        tqdm.write(str(text), file=sys.stdout)
        sys.stdout.flush()


def progress_bar(*args: Any, **options: Any) -> ProgressBar:
    """tqdm(...) where stderr is a terminal, elsewhere `ProgressLines`."""
    return (tqdm if sys.stderr.isatty() else ProgressLines)(*args, **options)


class ProgressLines:
    """The part of tqdm that this package uses, as a plain line on stderr every 10 seconds and one at the end."""

    def __init__(
        self,
        iterable: Iterable[Any] = (),
        desc: str = "progress",
        total: int | None = None,
        *,
        initial: int = 0,
        unit: str = "it",
        leave: bool = True,
        disable: bool = False,
    ):
        """leave: whether the last line is written even if less than 10 seconds have passed."""
        self.n = self.initial = initial
        self.total = total
        self._iterable, self._desc, self._unit, self._postfix = iterable, desc, unit, ""
        self._disable, self._leave = disable, leave
        self._start = self._printed = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self._iterable:
                yield item
                self.update()

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        self.n += n
        if not self._disable and time.monotonic() - self._printed >= SECONDS:
            self._print()

    def set_postfix(self, refresh: bool = True, **values: Any) -> None:
        """What the next lines end in; `refresh` has no meaning here."""
        self._postfix = "".join(f", {name}={value}" for name, value in values.items())

    def close(self) -> None:
        if self._leave and not self._disable:
            self._print()
        self._disable = True

    def _print(self) -> None:
        self._printed = time.monotonic()
        total = "" if self.total is None else f"/{self.total}"
        seconds = self._printed - self._start
        text = f"{self._desc}: {self.n}{total} {self._unit}, {seconds:.0f} s{self._postfix}"
        print(text, file=sys.stderr, flush=True)


ProgressBar = tqdm | ProgressLines
