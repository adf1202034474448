"""An output file that grows window by window, in one process or several, and survives a kill at any moment.

While it grows it is a directory beside the output, `<output>.partial`, on a disk that all processes see:

  settings.json  what the content depends on; another run must have the same
  part-<i>       what process i wrote, synced to disk before it is noted in
  journal-<i>    a line for each window: its number, and where it begins and ends in the part

What no line of a journal speaks of does not count, so a window is there whole or not at all. At the end the windows are
copied in order into one file, which takes the output's name in one step.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from seq2seq_jax.parallel.multihost import barrier

SETTINGS, PART, JOURNAL, JOINED = "settings.json", "part-", "journal-", "joined"
POLL_SECONDS = 0.5


class Share(NamedTuple):
    """Which process this is, of how many; window w is the business of process w % count."""

    index: int = 0
    count: int = 1


class Place(NamedTuple):
    """Where a window's content lies: bytes begin to end of a part."""

    part: int
    begin: int
    end: int


def directory_of(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


def write_windows(
    output: Path,
    count: int,
    content: Callable[[int], bytes],
    settings: Mapping[str, Any],
    *,
    share: Share = Share(),  # noqa: B008
    resumed: Callable[[int], None] = lambda number: None,
) -> None:
    """Writes windows 0 to count - 1 of `output`, those of this process, and joins all of them in process 0.

    Begun again after a stop, with the same settings, it goes on; the number of processes may be another one. An output
    that is already there is replaced at the end.

    Args:
      content: the bytes of a window. settings: what they depend on; JSON values, nested mappings included.
      resumed: called with each window of this process that was there already.

    Raises:
      ValueError: if the partial output has other settings (says which), or another process is writing this share.
    """
    if 0 < share.index >= count and jax.process_count() == 1:
        return  # nothing to do, and process 0 may have finished already
    with Partial(output, settings, share.index) as partial:
        done = partial.places()
        barrier("partial output opened")  # or a quick process could join before a slow one has looked
        for number in range(share.index, count, share.count):
            if number in done:
                resumed(number)
            else:
                partial.append(number, content(number))
    if share.index == 0:
        partial.wait(count)
        partial.join(count)
    elif jax.process_count() > 1:  # one that leaves early takes the others down
        while partial.directory.exists():
            time.sleep(POLL_SECONDS)


class Partial:
    """The directory of a partial output, open for one process's part."""

    def __init__(self, output: Path, settings: Mapping[str, Any], index: int = 0):
        self.output, self.directory, self.index = output, directory_of(output), index
        # Left of a run that was killed while it tidied up.
        self._old = output.with_name(output.name + ".done")
        if index == 0 and self._old.exists():
            shutil.rmtree(self._old)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._claim(json.loads(json.dumps(settings)))
        self._journal = (self.directory / f"{JOURNAL}{index}").open("a+b")
        self._lock()
        self._part = (self.directory / f"{PART}{index}").open("a+b")
        entries, kept = _entries(self._journal.name)
        self._journal.truncate(kept)
        noted = max((end for _, _, end in entries), default=0)
        self._check_size(self._part, noted)
        self._part.truncate(noted)
        _sync_directory(self.directory)

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *error: object) -> None:
        self._part.close()
        self._journal.close()

    def places(self) -> dict[int, Place]:
        """Where the windows lie that are there, by number."""
        found: dict[int, Place] = {}
        for path in sorted(self.directory.glob(f"{JOURNAL}*")):
            part = int(path.name.removeprefix(JOURNAL))
            for number, begin, end in _entries(path)[0]:
                found.setdefault(number, Place(part, begin, end))
        return found

    def append(self, number: int, content: bytes) -> None:
        """Adds a window."""
        begin = self._part.seek(0, os.SEEK_END)
        self._part.write(content)
        _sync(self._part)
        self._journal.write(json.dumps([number, begin, begin + len(content)]).encode() + b"\n")
        _sync(self._journal)

    def wait(self, count: int) -> None:
        """Until all windows are there."""
        bar = None
        while missing := count - len(self.places()):
            bar = bar or tqdm(total=missing, desc="wait for other processes", unit="window")
            bar.update(bar.total - missing - bar.n)
            time.sleep(POLL_SECONDS)

    def join(self, count: int) -> None:
        """Makes the output of all windows, and removes the directory."""
        joined, places = self.directory / JOINED, self.places()
        with joined.open("wb") as file:
            for number in range(count):
                file.write(self._read(places[number]))
            _sync(file)
        os.replace(joined, self.output)
        _sync_directory(self.output.parent)
        # In one step, or what is left after a kill would look like a partial output.
        os.rename(self.directory, self._old)
        shutil.rmtree(self._old)

    def _claim(self, settings: dict[str, Any]) -> None:
        """Writes the settings, or compares them with those that are there."""
        path, own = self.directory / SETTINGS, self.directory / f"{SETTINGS}.{self.index}"
        if not path.exists():
            if any(self.directory.glob(f"{JOURNAL}*")):
                raise ValueError(f"{self.directory} has no {SETTINGS}; delete it to begin anew")
            with own.open("wb") as file:
                file.write(json.dumps(settings, indent=2).encode() + b"\n")
                _sync(file)
            with contextlib.suppress(FileExistsError):  # another process was quicker
                os.link(own, path)  # whole or not at all
            own.unlink()
        before, now = (dict(_flat(each)) for each in (json.loads(path.read_bytes()), settings))
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if names:
            changes = "; ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in names)
            raise ValueError(
                f"{self.directory} holds the first part of another output: {changes}; set that back to go on, delete"
                " the directory to begin anew, or give another output"
            )

    def _lock(self) -> None:
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return  # a file system without locks
            raise ValueError(
                f"{self._journal.name} is being written by another process; wait for it, or give each process its own"
                " --process_id"
            ) from None

    def _read(self, place: Place) -> bytes:
        with (self.directory / f"{PART}{place.part}").open("rb") as file:
            self._check_size(file, place.end)
            file.seek(place.begin)
            return file.read(place.end - place.begin)

    def _check_size(self, file, end: int) -> None:
        size = os.fstat(file.fileno()).st_size
        if size < end:
            raise ValueError(
                f"{file.name} ends at byte {size}, before byte {end} that its journal names; delete {self.directory}"
                " to begin anew"
            )


def _entries(path: str | Path) -> tuple[list[list[int]], int]:
    """[number, begin, end] of each window in a journal, and the bytes of its whole lines; a torn last line is none."""
    content = Path(path).read_bytes()
    kept = content.rfind(b"\n") + 1
    return [json.loads(line) for line in content[:kept].splitlines()], kept


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _sync(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
