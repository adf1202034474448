"""What a person meets at the scripts' edges: help, one line for a mistake, exit codes, and lines in place of bars."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seq2seq_jax.parallel import progress

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ("train", "evaluate", "generate", "convert", "make_pairs")
HEAVY = {"jax", "flax", "optax", "orbax", "torch", "transformers", "datasets", "pyarrow", "tokenizers", "grain"}


def start(script, *arguments, **options):
    """A script by its name, or a program after "-c"."""
    command = [sys.executable, script if script == "-c" else ROOT / "scripts" / f"{script}.py", *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def run(script, *arguments, **options):
    process = start(script, *arguments, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_light(script, tmp_path):
    """From another directory; by the modules that are imported, since a shared machine's clock says little."""
    code = (
        f"import runpy, sys, atexit; sys.argv = [{str(ROOT / 'scripts' / script)!r} + '.py', '--help'];"
        f"sys.path.insert(0, {str(ROOT / 'scripts')!r});"
        f"atexit.register(lambda: print('imported:', *sorted({HEAVY!r} & set(sys.modules))));"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "flags:" in done.stdout and "--[no]debug" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "imported:"


def named(text, script, err):
    """The one line on stderr, which begins with the script's name."""
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"{script}.py: ") and re.search(text, lines[0]), err


@pytest.mark.parametrize(
    ("script", "arguments", "text"),
    [
        ("train", ["runs/x"], "unexpected argument 'runs/x'; all arguments are flags"),
        ("train", ["--config=nowhere.py"], r"--config=nowhere\.py: there is no file nowhere\.py; give a recipe"),
        ("train", ["--config=configs/rothe.py:large", "--workdir=x"], "has no variants, so 'large' is unknown"),
        ("train", ["--config=configs/rothe.py", "--config.optimzer.b1=0.1"], "optimzer.*optimizer"),
        ("generate", ["--model=x", "--mbr=chf"], "mbr=chf.*chrf"),
        (
            "evaluate",
            ["--model=x", "--data=y", "--output=z", "--metrics=rogue"],
            r"metrics=\['rogue'\]: give any of bleu",
        ),
        ("convert", ["--input=x", "--encoder=y", "--decoder=z", "--output=o"], "give either --input"),
        ("make_pairs", ["--sourse=x"], "Unknown command line flag 'sourse'. Did you mean: source"),
    ],
)
def test_wrong_flags(script, arguments, text):
    code, _, err = run(script, *arguments, cwd=ROOT)
    assert code == 2
    named(text, script, err)


@pytest.mark.parametrize(
    ("script", "arguments", "text"),
    [
        ("train", ["--config=configs/rothe.py", "--workdir={tmp}/run"], "config.encoder is missing; give it a value"),
        ("make_pairs", ["--source={tmp}", "--output={tmp}"], "No such file"),
        ("convert", ["--input={tmp}/absent", "--output={tmp}"], "absent"),
    ],
)
def test_mistakes(script, arguments, text, tmp_path):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    code, _, err = run(script, *arguments, cwd=ROOT)
    assert code == 1 and "Traceback" not in err
    named(text, script, err)


MAIN = """
import sys, time
sys.path.insert(0, "scripts")
import command
def main(argv):
    {body}
command.run(main)
"""


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ("return None", 0, ""),
        ("return 3", 3, ""),
        ("raise ValueError('a\\nb')", 1, r"^-c: a b \(--debug shows the traceback\)$"),
        ("raise ValueError('debugged')", 1, "^Traceback"),
        ("raise RuntimeError('a fault')", 1, "^Traceback"),
    ],
)
def test_exit_codes(body, code, text):
    returned, _, err = run("-c", MAIN.format(body=body), *(["--debug"] if "debugged" in body else []), cwd=ROOT)
    assert returned == code and re.search(text, err.strip()), err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(number, code):
    # A shell's background jobs ignore SIGINT, and their children would.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = start("-c", MAIN.format(body="print('here', flush=True); time.sleep(60)"), cwd=ROOT, preexec_fn=heed)
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    begin = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in err and time.monotonic() - begin < 30


def test_lines_in_place_of_a_bar(capsys, monkeypatch):
    """Not a terminal: one line every ten seconds and at the end."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.progress_bar(total=40, desc="train", unit="step", initial=10) as bar:
        for _ in range(30):
            now[0] += 1.0
            bar.update()
            bar.set_postfix(loss="1.5")
    written = capsys.readouterr().err
    assert "\r" not in written
    assert written.splitlines() == [f"train: {n}/40 step, {n - 10} s, loss=1.5" for n in (20, 30, 40, 40)]
    assert list(progress.progress_bar(range(3), "loss", 3, unit="batch", leave=False)) == [0, 1, 2]
    assert not list(progress.progress_bar([], disable=True)) and capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(progress.progress_bar(total=3, disable=True), progress.tqdm)
