"""One program for each shape of batches."""

import pytest

from seq2seq_jax.training.loop import TrainingInterrupted, train
from tests.training import toy
from tests.training.compilations import compiled


@pytest.mark.slow
def test_a_run_makes_one_program_a_bucket(tmp_path):
    """Evaluations, checkpoints and their return add none."""
    work = toy.make(tmp_path)
    config = toy.config(work, batch={"size": 8, "buckets": 2}, evaluation={"every": 2}, checkpoints={"every": 1})
    with compiled("train_step") as programs:
        with pytest.raises(TrainingInterrupted):
            train(config, work / "run", stop_at=5)
        assert len(programs) == 2
        train(config, work / "run")
    assert 3 <= len(programs) <= 4, "the last step needs one, or the last two need two"
