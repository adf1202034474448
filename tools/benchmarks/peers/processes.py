"""Runs the peers: makes their environments and models, starts their processes, sends them requests."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.log import log

PROGRAMS = Path(__file__).parent
ROOT = PROGRAMS.parents[2]  # where the packages `seq2seq_jax` and `tools` lie

# The packages of each environment; that of "ours" is the running one.
REQUIREMENTS = {
    "torch": ("torch==2.13.0", "transformers>=5.23,<6"),
    "flax": ("transformers==4.55.4", "flax==0.10.4", "jax==0.4.38", "jaxlib==0.4.38", "numpy<2.3"),
    "ctranslate2": ("ctranslate2==4.8.*", "transformers==4.57.6", "torch==2.13.0", "numpy<2.3"),
}


def environment(name: str, directory: Path, in_place: bool = False) -> Path:
    """The Python of an environment. Makes the environment if `directory/name/bin/python` does not exist.

    Args:
      name: of `REQUIREMENTS`, or "ours".
      in_place: all peers use the running Python.

    Raises:
      RuntimeError: if the packages cannot be installed.
    """
    if in_place or name == "ours":
        return Path(sys.executable)
    place = directory / name
    if not (place / "bin" / "python").exists():
        _make_directory(place, lambda new: _install(new, REQUIREMENTS[name]))
    return place / "bin" / "python"


def _install(place: Path, requirements: tuple[str, ...]) -> None:
    log(f"making {place.name.removesuffix('.new')}'s environment: {', '.join(requirements)}")
    _run([sys.executable, "-m", "venv", str(place)])
    _run([str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", *requirements])


def make_model(directory: Path, python: Path, program: str, *arguments: str) -> Path:
    """Lets `program`, a file of this folder, write a model to `directory`, its first argument, unless it exists."""
    if not directory.exists():
        log(f"writing {directory.name}")
        script = str(PROGRAMS / program)
        _make_directory(directory, lambda new: _run([str(python), script, str(new), *arguments], python))
    return directory


def _make_directory(place: Path, make: Any) -> None:
    """Makes a directory under another name and renames it, so that an unfinished one is never used."""
    new = place.with_name(f"{place.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.parent.mkdir(parents=True, exist_ok=True)
    make(new)
    new.rename(place)


def _run(command: list[str], python: Path | None = None) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_variables(python))
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}; correct what it reports:\n{tail}")


def _variables(python: Path | None, device: str = "cpu") -> dict[str, str]:
    """The environment variables of a peer. It does not ask the hub, and only this Python finds our packages."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "1"}
    path = variables.pop("PYTHONPATH", "")
    if python == Path(sys.executable):
        variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [path])])
    if device == "cpu":
        variables["JAX_PLATFORMS"] = "cpu"
    else:
        variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # peers share the GPU
    return variables


class Peer:
    """A process that answers requests (see `harness.py`). Close it after use.

    Attributes:
      name: for messages. versions: of its Python and packages.
    """

    def __init__(self, name: str, python: Path, program: str, setting: Mapping[str, Any]):
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `close`)
        self._process = subprocess.Popen(
            [str(python), str(PROGRAMS / program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, text=True, env=_variables(python, setting["device"]),
        )  # fmt: skip
        self.versions: dict[str, str] = self.ask(setting)["versions"]

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request.

        Raises:
          RuntimeError: if the process ends instead; has the last lines that it wrote.
        """
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        tail = "".join(self._errors.readlines()[-15:])
        reason = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
        reason += " (memory may have run out)" if code == -9 else ""
        raise RuntimeError(f"{self.name} {reason}; leave it out (--systems), or correct what it reports:\n{tail}")

    def close(self) -> None:
        """Ends the process and waits until it has ended."""
        with contextlib.suppress(BrokenPipeError):  # of one that has ended already
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()
