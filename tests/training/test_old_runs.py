"""A workdir that an earlier version of this package wrote: it is resumed, loaded, and its config is still compared.

old_run.tar.xz is the run of `settings` below with tests/training/toy.py's files, stopped after 2 of 4 steps, by commit
b3c5250; EXPECTED is how that commit went on from there.
"""

import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from seq2seq_jax.inference.trained import load_trained
from seq2seq_jax.training.loop import train
from tests.training import toy
from tests.weights.checkpoints import equal

EXPECTED = {"train/loss": {3: 3.8129687, 4: 3.6578059}, "eval/loss": {4: 3.4930498}}


def settings(**changes):
    groups = ({"match": "encoder", "name": "enc", "learning_rate_scale": 0.5}, {"match": ".*", "name": "rest"})
    optimizer = {"learning_rate": 1e-3, "groups": groups}
    return toy.config(Path("."), **{"ema_decay": 0.9, "num_steps": 4, "optimizer": optimizer, **changes})


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The old workdir, with its data and checkpoints beside it, in the current directory."""
    with tarfile.open(Path(__file__).with_name("old_run.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return Path("run")


def test_an_old_run_goes_on(run):
    exported = train(settings(), run)
    for name, values in EXPECTED.items():
        found = toy.records(run, name)
        assert {step: found[step] for step in values} == pytest.approx(values, rel=1e-5), name
    equal(load_trained(run).pretrained.params, load_trained(exported).pretrained.params)


def test_an_old_checkpoint_is_a_model(run):
    trained = load_trained(run)
    assert trained.data.max_source_length == 14 and trained.tokenizers.source.vocab_size == 31
    assert trained.pretrained.generation_config.max_length == 6
    assert all(np.isfinite(x).all() and x.std() >= 0 for x in jax.tree.leaves(trained.pretrained.params))
    equal(trained.pretrained.params, load_trained(run, step=2).pretrained.params)


def test_another_config_is_refused(run):
    with pytest.raises(ValueError, match=r"step 2 of a run with another config: ema_decay was 0\.9 and is 0\.5"):
        train(settings(ema_decay=0.5), run)
