"""Run by test_runs.py in a process of its own, with 8 virtual devices: whole toy runs, by jit and by pmap."""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from seq2seq_jax.pretrained.loading import from_pretrained
from seq2seq_jax.training.loop import TrainingInterrupted, train
from tests.training import toy
from tests.training.compilations import compiled

WORK = toy.make(Path(sys.argv[1]))
RUN = {"dropout": 0.0, "batch": {"size": 8, "buckets": 2}, "evaluation": {"every": 2}, "checkpoints": {"every": 3}}
RUN["optimizer"] = {"learning_rate": 1e-3, "eps": 1e-3}


def run(name, mesh, *, then=None):
    """A run to its end, with a stop at step 3 if it then goes on on another mesh: losses, scores, parameters; and how
    many programs each part made of the step."""
    workdir, counts = WORK / name, []
    for part, stop_at in ([(mesh, 3)] if then else []) + [(then or mesh, None)]:
        with compiled("train_step", "_fun") as programs:  # pmap's has no better name
            try:
                train(toy.config(WORK, mesh=part, **RUN), workdir, stop_at=stop_at)
            except TrainingInterrupted as stopped:
                assert stopped.step == stop_at
        counts.append(len(programs))
    scores = json.loads((workdir / "scores.json").read_text())
    return toy.records(workdir), toy.records(workdir, "eval/loss"), scores, workdir / "pretrained", counts


def same(found, expected):
    for ours, theirs in zip(found[:2], expected[:2]):
        assert list(ours) == list(theirs)
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)
    assert found[2]["step"] == expected[2]["step"]
    np.testing.assert_allclose(found[2]["loss"], expected[2]["loss"], rtol=1e-5)
    pairs = [jax.tree.leaves(from_pretrained(each[3]).params) for each in (found, expected)]
    for ours, theirs in zip(*pairs):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


by_jit = run("jit", {"data": 8})
assert by_jit[4] == [2], by_jit[4]
for name, mesh, then in (
    ("pmap", {"mode": "pmap"}, None),
    ("pmap, stopped, on by pmap", {"mode": "pmap"}, {"mode": "pmap"}),
    ("pmap, stopped, on by jit", {"mode": "pmap"}, {"data": 2, "fsdp": 4}),
    ("fsdp, stopped, on by pmap", {"data": 2, "fsdp": 4}, {"mode": "pmap"}),
    ("fsdp, stopped, on over replicas", {"data": 2, "fsdp": 4}, {"replica": 4, "data": 2}),
):
    other = run(name, mesh, then=then)
    same(other, by_jit)
    assert other[4] == [2] * len(other[4]), (name, other[4])
    print("held:", name, flush=True)
