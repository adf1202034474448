"""Two processes are one: a run to its end, and an evaluation of what it made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from seq2seq_jax.pretrained.pair import from_pretrained
from seq2seq_jax.training.loop import train
from tests.ports import free_port
from tests.training import toy

ROOT = Path(__file__).parent.parent.parent


def both(*command):
    """What two processes print that work as one."""
    together = ["--distributed", f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false"}
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command), *together, f"--process_id={i}"],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=1200)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(text[-3000:] for text in said)
    return said


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 2}, {"fsdp": 2, "data": 1}])
def test_two_processes_train_and_evaluate_as_one(tmp_path, mesh):
    work = toy.make(tmp_path)
    changes = {"dropout": 0.0, "evaluation": {"every": 3}, "optimizer": {"learning_rate": 1e-3, "eps": 1e-3}}
    train(toy.config(work, **changes), work / "one")
    settings = toy.settings(work, **changes, mesh=mesh)
    config = work / "config.py"
    config.write_text(
        "from seq2seq_jax.training.configs import train_config\n\n\n"
        f"def get_config():\n    return train_config({settings!r})\n"
    )
    first, second = both("scripts/train.py", f"--config={config}", f"--workdir={work / 'two'}")
    assert "training: 40 examples" in first and "training: 40 examples" not in second, "only one process speaks"
    for name in ("train/loss", "eval/loss"):
        ours, theirs = toy.records(work / "two", name), toy.records(work / "one", name)
        assert list(ours) == list(theirs)
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)
    exported = [jax.tree.leaves(from_pretrained(work / name / "pretrained").params) for name in ("two", "one")]
    assert (work / "two" / "samples.txt").read_text() == (work / "one" / "samples.txt").read_text()
    for ours, theirs in zip(*exported):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)

    data = ("--data=" + str(work / "validation.jsonl"), "--metrics=rouge", f"--output={work / 'scored'}")
    both("scripts/evaluate.py", f"--model={work / 'two'}", *data)
    scored = json.loads((work / "scored" / "scores.json").read_text())
    kept = json.loads((work / "two" / "scores.json").read_text())
    for name in ("loss", "rouge1", "rougeL"):
        assert scored[name] == pytest.approx(kept[name], rel=1e-5), name
