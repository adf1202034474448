"""An output that grows window by window: kills at any moment, several processes, other settings."""

import os
import stat
import threading

import pytest

from seq2seq_jax.inference import windowed_output
from seq2seq_jax.inference.windowed_output import ProcessShare, partial_directory, write_windows

COUNT = 5
SETTINGS = {"seed": 1, "generation": {"num_beams": 4}}
OUTPUT = b"".join(f"window {i}\n".encode() * (i % 3) for i in range(COUNT))  # some windows are empty


def content(number):
    return f"window {number}\n".encode() * (number % 3)


class Killed(BaseException):
    pass


def run(output, fails_at=None, **options):
    """Writes the windows; returns the numbers of those that were computed in this run."""
    computed = []

    def compute(number):
        if number == fails_at:
            raise Killed
        computed.append(number)
        return content(number)

    write_windows(output, COUNT, compute, SETTINGS, **options)
    return computed


def names(path):
    return sorted(p.name for p in path.iterdir())


def test_uninterrupted(tmp_path):
    assert run(tmp_path / "new" / "out") == list(range(COUNT))
    assert (tmp_path / "new" / "out").read_bytes() == OUTPUT and names(tmp_path / "new") == ["out"]
    (tmp_path / "new" / "out").write_text("old")
    run(tmp_path / "new" / "out")
    assert (tmp_path / "new" / "out").read_bytes() == OUTPUT


def test_continues_where_it_stopped(tmp_path):
    output = tmp_path / "out"
    with pytest.raises(Killed):
        run(output, fails_at=3)
    assert not output.exists()
    resumed = []
    assert run(output, resumed=resumed.append) == [3, 4] and resumed == [0, 1, 2]
    assert output.read_bytes() == OUTPUT and names(tmp_path) == ["out"]


@pytest.mark.parametrize("size", range(len(content(2)) + 1))
@pytest.mark.parametrize("file", range(COUNT + 2))
def test_killed_at_any_byte_of_a_file(tmp_path, monkeypatch, file, size):
    """Of a file that is not synced yet (settings, window or output), a kill leaves any number of bytes on the disk."""
    output, files = tmp_path / "out", []

    def torn(handle):
        files.extend([handle] if stat.S_ISREG(os.fstat(handle).st_mode) else [])
        if len(files) == file + 1:
            os.ftruncate(handle, min(size, os.fstat(handle).st_size))
            raise Killed

    monkeypatch.setattr(os, "fsync", torn)
    with pytest.raises(Killed):
        run(output)
    monkeypatch.undo()
    assert not output.exists()
    assert run(output) == list(range(COUNT))[max(0, file - 1) :]
    assert output.read_bytes() == OUTPUT and names(tmp_path) == ["out"]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["replace", "rename", "link", "fsync"])
def test_killed_at_each_step_between_files(tmp_path, monkeypatch, name, after):
    """Before and after each call that changes what is on the disk, until the run gets through."""
    real, finished, kills = getattr(os, name), False, 0
    while not finished:
        output, calls = tmp_path / str(kills) / "out", []

        def killed(*arguments):
            calls.append(arguments)  # noqa: B023
            if len(calls) <= kills:  # noqa: B023
                return real(*arguments)
            if after:
                real(*arguments)
            raise Killed

        monkeypatch.setattr(os, name, killed)
        try:
            run(output)
            finished = True
        except Killed:
            kills += 1
        monkeypatch.undo()
        assert not output.exists() or output.read_bytes() == OUTPUT
        run(output)
        assert output.read_bytes() == OUTPUT and names(output.parent) == ["out"]
    assert kills == {"replace": COUNT + 2, "rename": 1, "link": 1, "fsync": 2 * (COUNT + 2)}[name]


def test_killed_while_it_deletes_its_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(windowed_output.shutil, "rmtree", lambda path: (os.remove(path / "settings.json"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "out")
    monkeypatch.undo()
    assert run(tmp_path / "out") == list(range(COUNT)), "what was left is no partial output"
    assert names(tmp_path) == ["out"]


def test_several_processes(tmp_path):
    """Process 0 waits for the others; a process that stopped continues by itself."""
    output, computed = tmp_path / "out", {}
    with pytest.raises(Killed):
        run(output, fails_at=4, share=ProcessShare(1, 3))
    write = lambda i: computed.update({i: run(output, share=ProcessShare(i, 3))})
    threads = [threading.Thread(target=write, args=[i]) for i in range(3)]
    threads[0].start()
    threads[0].join(1)
    assert threads[0].is_alive() and not output.exists()
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert computed == {0: [0, 3], 1: [4], 2: [2]}
    assert output.read_bytes() == OUTPUT and names(tmp_path) == ["out"]


@pytest.mark.parametrize("before, now", [(3, 1), (1, 2), (2, 3)])
def test_other_number_of_processes(tmp_path, before, now):
    output = tmp_path / "out"
    for index in range(1, before):
        run(output, share=ProcessShare(index, before))
    last = max(range(0, COUNT, before))
    with pytest.raises(Killed):
        run(output, fails_at=last, share=ProcessShare(0, before))
    computed = [number for index in reversed(range(now)) for number in run(output, share=ProcessShare(index, now))]
    assert computed == [last]
    assert output.read_bytes() == OUTPUT and names(tmp_path) == ["out"]


def test_process_without_work(tmp_path):
    assert run(tmp_path / "out", share=ProcessShare(COUNT, COUNT + 1)) == [] and names(tmp_path) == []
    write_windows(tmp_path / "empty", 0, content, SETTINGS)
    assert (tmp_path / "empty").read_bytes() == b""


@pytest.mark.parametrize(
    "settings, message",
    [
        ({**SETTINGS, "seed": 2}, "seed was 1 and is 2; set that back to go on, delete the directory"),
        ({"seed": 1, "generation": {"num_beams": 2}}, r"generation\.num_beams was 4 and is 2"),
        ({"seed": 1, "generation": {"num_beams": 4}, "more": 0}, "more was None and is 0"),
        ({"seed": 1}, r"generation\.num_beams was 4 and is None"),
    ],
)
def test_other_settings_are_refused(tmp_path, settings, message):
    output = tmp_path / "out"
    with pytest.raises(Killed):
        run(output, fails_at=2)
    before = names(partial_directory(output))
    with pytest.raises(ValueError, match=message):
        write_windows(output, COUNT, content, settings)
    assert names(partial_directory(output)) == before
    assert run(output) == [2, 3, 4]


def test_two_processes_with_one_number(tmp_path):
    def compute(number):
        with pytest.raises(ValueError, match=r"another process holds .*process-0\.lock; wait for it, or give each"):
            run(tmp_path / "out")
        return content(number)

    write_windows(tmp_path / "out", COUNT, compute, SETTINGS)
    assert (tmp_path / "out").read_bytes() == OUTPUT


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: (path / "settings.json").unlink(), r"out\.partial has no settings\.json; delete it to begin"),
        (lambda path: (path / "journal-0").touch(), r"out\.partial is of an earlier version of this program; delete"),
    ],
)
def test_directory_that_cannot_be_continued(tmp_path, damage, message):
    output = tmp_path / "out"
    with pytest.raises(Killed):
        run(output, fails_at=4)
    damage(partial_directory(output))
    with pytest.raises(ValueError, match=message):
        run(output)
