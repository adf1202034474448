"""An output that grows window by window: kills at any byte, several processes, other settings."""

import json
import os
import shutil
import threading

import pytest

from seq2seq_jax.inference.windowed_output import Partial, Share, directory_of, write_windows

COUNT = 5
SETTINGS = {"seed": 1, "generation": {"num_beams": 4}}
WHOLE = b"".join(f"window {i}\n".encode() * (i % 3) for i in range(COUNT))  # some windows are empty


def content(number):
    return f"window {number}\n".encode() * (number % 3)


class Killed(Exception):
    pass


def run(output, fails_at=None, **options):
    """Writes the windows; returns the numbers of those that were made in this run."""
    made = []

    def make(number):
        if number == fails_at:
            raise Killed
        made.append(number)
        return content(number)

    write_windows(output, COUNT, make, SETTINGS, **options)
    return made


def left(path):
    return sorted(p.name for p in path.iterdir())


def test_uninterrupted(tmp_path):
    assert run(tmp_path / "new" / "out") == list(range(COUNT))
    assert (tmp_path / "new" / "out").read_bytes() == WHOLE and left(tmp_path / "new") == ["out"]
    (tmp_path / "new" / "out").write_text("old")
    run(tmp_path / "new" / "out")
    assert (tmp_path / "new" / "out").read_bytes() == WHOLE


def test_goes_on_where_it_stopped(tmp_path):
    output = tmp_path / "out"
    with pytest.raises(Killed):
        run(output, fails_at=3)
    assert not output.exists()
    resumed = []
    assert run(output, resumed=resumed.append) == [3, 4] and resumed == [0, 1, 2]
    assert output.read_bytes() == WHOLE and left(tmp_path) == ["out"]


def test_killed_at_any_byte(tmp_path):
    """What a kill leaves is a beginning of all bytes written, in their order: each of them is tried."""
    stopped = tmp_path / "stopped"
    with pytest.raises(Killed):
        run(stopped / "out", fails_at=COUNT - 1)
    files = {name: (directory_of(stopped / "out") / name).read_bytes() for name in ("part-0", "journal-0")}
    order = []  # (file, bytes in it) after each byte written
    for entry in files["journal-0"].splitlines(keepends=True):
        _, begin, end = json.loads(entry)
        order += [("part-0", size) for size in range(begin + 1, end + 1)]
        begin = sum(name == "journal-0" for name, _ in order)
        order += [("journal-0", begin + i + 1) for i in range(len(entry))]
    assert len(order) == sum(map(len, files.values()))
    sizes = dict.fromkeys(files, 0)
    for step, (name, size) in enumerate(order):
        sizes[name] = size
        killed = tmp_path / f"killed-{step}"
        shutil.copytree(directory_of(stopped / "out"), directory_of(killed / "out"))
        for each, count in sizes.items():
            os.truncate(directory_of(killed / "out") / each, count)
        made = run(killed / "out")
        assert (killed / "out").read_bytes() == WHOLE, (step, name, size)
        assert made == list(range(files["journal-0"][: sizes["journal-0"]].count(b"\n"), COUNT))


@pytest.mark.parametrize("name", ["replace", "rename", "link"])
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_a_step_between_files(tmp_path, monkeypatch, name, after):
    output, real = tmp_path / "out", getattr(os, name)

    def killed(*arguments):
        if after:
            real(*arguments)
        raise Killed

    monkeypatch.setattr(partial.os, name, killed)
    with pytest.raises(Killed):
        run(output)
    monkeypatch.undo()
    assert not output.exists() or output.read_bytes() == WHOLE
    run(output)
    assert output.read_bytes() == WHOLE and left(tmp_path) == ["out"]


def test_killed_while_tidying_up(tmp_path, monkeypatch):
    monkeypatch.setattr(partial.shutil, "rmtree", lambda path: (os.remove(path / "settings.json"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "out")
    monkeypatch.undo()
    assert run(tmp_path / "out") == list(range(COUNT)), "what was left is no partial output"
    assert left(tmp_path) == ["out"]


def test_several_processes(tmp_path):
    """Process 0 waits for the others; a process that stopped goes on by itself."""
    output, made = tmp_path / "out", {}
    with pytest.raises(Killed):
        run(output, fails_at=4, share=Share(1, 3))
    threads = [threading.Thread(target=lambda i=i: made.update({i: run(output, share=Share(i, 3))})) for i in (0, 1, 2)]
    threads[0].start()
    threads[0].join(1)
    assert threads[0].is_alive() and not output.exists()
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert made == {0: [0, 3], 1: [4], 2: [2]}
    assert output.read_bytes() == WHOLE and left(tmp_path) == ["out"]


@pytest.mark.parametrize("before, now", [(3, 1), (1, 2), (2, 3)])
def test_other_number_of_processes(tmp_path, before, now):
    output = tmp_path / "out"
    for index in range(before):
        with Partial(output, SETTINGS, index) as opened:
            for number in range(index, 3, before):
                opened.append(number, content(number))
    made = [number for index in reversed(range(now)) for number in run(output, share=Share(index, now))]
    assert sorted(made) == [3, 4]
    assert output.read_bytes() == WHOLE and left(tmp_path) == ["out"]


def test_process_without_work(tmp_path):
    assert run(tmp_path / "out", share=Share(COUNT, COUNT + 1)) == [] and left(tmp_path) == []
    write_windows(tmp_path / "empty", 0, content, SETTINGS)
    assert (tmp_path / "empty").read_bytes() == b""


def test_other_settings_are_refused(tmp_path):
    output = tmp_path / "out"
    with pytest.raises(Killed):
        run(output, fails_at=2)
    before = left(directory_of(output))
    for settings, message in (
        ({**SETTINGS, "seed": 2}, "seed was 1 and is 2; set that back to go on, delete the directory"),
        ({"seed": 1, "generation": {"num_beams": 2}}, r"generation\.num_beams was 4 and is 2"),
        ({"seed": 1, "generation": {"num_beams": 4}, "more": 0}, "more was None and is 0"),
        ({"seed": 1}, r"generation\.num_beams was 4 and is None"),
    ):
        with pytest.raises(ValueError, match=message):
            write_windows(output, COUNT, content, settings)
    assert left(directory_of(output)) == before
    assert run(output) == [2, 3, 4]


def test_two_processes_with_one_number(tmp_path):
    with Partial(tmp_path / "out", SETTINGS):
        with pytest.raises(ValueError, match="journal-0 is being written by another process"):
            Partial(tmp_path / "out", SETTINGS)
        Partial(tmp_path / "out", SETTINGS, 1)
    Partial(tmp_path / "out", SETTINGS)


def test_damaged_directory(tmp_path):
    output = tmp_path / "out"
    with pytest.raises(Killed):
        run(output, fails_at=4)
    os.truncate(directory_of(output) / "part-0", 3)
    with pytest.raises(ValueError, match=r"part-0 ends at byte 3, before byte 27 that its journal names; delete"):
        run(output)
    os.remove(directory_of(output) / "settings.json")
    with pytest.raises(ValueError, match=r"out\.partial has no settings\.json; delete it to begin anew"):
        run(output)
