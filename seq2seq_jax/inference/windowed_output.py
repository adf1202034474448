"""An output file that grows window by window, in one process or several, and survives a kill at any moment.

While it grows, the directory `<output>.partial`, on a disk that all processes see, holds `settings.json`, which says
what the content depends on, and a file for each window that is done. A window is written under a temporary name and
renamed when whole, so a window whose file exists is done. At the end the files are concatenated in order.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from seq2seq_jax.parallel.multihost import barrier

SETTINGS = "settings.json"
POLL_SECONDS = 0.5


class ProcessShare(NamedTuple):
    """Process `index` of `count`, which writes the windows w with w % count == index."""

    index: int = 0
    count: int = 1


def partial_directory(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


def write_windows(
    output: Path,
    count: int,
    content: Callable[[int], bytes],
    settings: Mapping[str, Any],
    *,
    share: ProcessShare = ProcessShare(),  # noqa: B008
    resumed: Callable[[int], None] = lambda number: None,
) -> None:
    """Writes windows 0 to count - 1 of `output`, those of this process; process 0 waits for all and concatenates them.

    Started again after a stop, with the same settings, it continues; the number of processes may differ. An output
    that exists already is replaced at the end.

    Args:
      content: the bytes of a window. settings: what they depend on; JSON values, nested mappings included.
      resumed: called with each window of this process that was done already.

    Raises:
      ValueError: if the partial output has other settings (says which), or another process is writing this share.
    """
    if 0 < share.index >= count and jax.process_count() == 1:
        return  # nothing to do, and process 0 may have finished already
    directory, leftover = partial_directory(output), output.with_name(output.name + ".done")
    if share.index == 0 and leftover.exists():  # of a run that was killed while it deleted its directory
        shutil.rmtree(leftover)
    directory.mkdir(parents=True, exist_ok=True)
    _check_settings(directory, json.loads(json.dumps(settings)), share.index)
    windows = [directory / f"window-{number:08d}" for number in range(count)]
    with _locked(directory / f"process-{share.index}.lock"):
        done = {number for number in range(share.index, count, share.count) if windows[number].exists()}
        barrier("partial output opened")  # or process 0 could delete the directory before a slow process has looked
        for number in range(share.index, count, share.count):
            if number in done:
                resumed(number)
            else:
                _write(windows[number], [content(number)])
    if share.index == 0:
        _wait(windows)
        _write(output, map(Path.read_bytes, windows), temporary=directory / "joined")
        os.rename(directory, leftover)  # in one step, or what a kill leaves would look like a partial output
        shutil.rmtree(leftover)
    elif jax.process_count() > 1:  # a process that leaves early takes the others down
        while directory.exists():
            time.sleep(POLL_SECONDS)


def _write(path: Path, parts: Iterator[bytes] | Sequence[bytes], temporary: Path | None = None) -> None:
    """Writes a file that has its name only when all of it is on the disk."""
    temporary = temporary or path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)  # the rename too
    finally:
        os.close(handle)


def _wait(windows: Sequence[Path]) -> None:
    """Waits until all windows are done."""
    missing, bar = list(windows), None
    while missing := [window for window in missing if not window.exists()]:
        bar = bar or tqdm(total=len(missing), desc="wait for other processes", unit="window")
        bar.update(bar.total - len(missing) - bar.n)
        time.sleep(POLL_SECONDS)


def _check_settings(directory: Path, settings: Mapping[str, Any], index: int) -> None:
    """Writes settings.json, or compares the one that exists with `settings`."""
    path, own = directory / SETTINGS, directory / f"{SETTINGS}.{index}"
    if any(directory.glob("journal-*")):
        raise ValueError(f"{directory} is of an earlier version of this program; delete it to begin anew")
    if not path.exists():
        if any(directory.glob("window-*")):
            raise ValueError(f"{directory} has no {SETTINGS}; delete it to begin anew")
        _write(own, [json.dumps(settings, indent=2).encode() + b"\n"])
        with contextlib.suppress(FileExistsError):  # another process was quicker
            os.link(own, path)  # complete or not at all
        own.unlink()
    before, now = (dict(_flatten(each)) for each in (json.loads(path.read_bytes()), settings))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        changes = "; ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in names)
        raise ValueError(
            f"{directory} holds the first part of another output: {changes}; set that back to go on, delete the"
            " directory to begin anew, or give another output"
        )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of a process number.

    Raises:
      ValueError: if another process holds it.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):  # else the file system has no locks
                raise ValueError(
                    f"another process holds {path}; wait for it, or give each process its own --process_id"
                ) from None
        yield
