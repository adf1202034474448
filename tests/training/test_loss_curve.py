"""A hundred steps of the quickstart's pair beside torch: the same weights, batches and optimizer, no dropout."""

import numpy as np
import pytest

from configs import quickstart
from seq2seq_jax.config import TrainConfig, from_mapping
from seq2seq_jax.data.pipeline import batches
from seq2seq_jax.pretrained.saving import save_pretrained
from seq2seq_jax.training.loop import Run, train
from tests.training import toy

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

STEPS, PEAK, WARMUP, FINAL = 100, 5e-4, 30, 0.05


def small_quickstart():
    config = quickstart.get_config()
    config.update({"num_steps": STEPS, "log_every": 1})
    config.data.update({"train_limit": 400, "validation_limit": 10, "max_source_length": 32})
    config.batch.update({"size": 8, "buckets": 2})
    config.optimizer.update({"learning_rate": PEAK, "warmup_steps": WARMUP, "final_fraction": FINAL})
    config.evaluation.update({"at_start": False, "best": "loss", "metrics": ("exact_match",)})
    return from_mapping(TrainConfig, config.to_dict())


def torch_curve(model, examples, optimizer):
    """Losses of the steps, each before its update; the schedule is written down once more."""
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda t: (t + 1) / WARMUP if t < WARMUP else 1 - (1 - FINAL) * (t - WARMUP) / (STEPS - WARMUP),
    )
    for batch in examples:
        loss = model(**{name: torch.tensor(value, dtype=torch.long) for name, value in batch.arrays.items()}).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        yield loss.item()


@pytest.mark.slow
@pytest.mark.parity
def test_hundred_steps_follow_torch(tmp_path, monkeypatch):
    config = small_quickstart()
    monkeypatch.setattr(Run, "_finish", lambda run, last: None)
    begin = Run.complete

    def keep_the_start(run, stop_at):
        save_pretrained(tmp_path / "start", run.pretrained.replace(params=run.state.params))
        keep_the_start.run = run
        return begin(run, stop_at)

    monkeypatch.setattr(Run, "complete", keep_the_start)
    train(config, tmp_path / "run")
    ours = toy.records(tmp_path / "run")
    assert list(ours) == list(range(1, STEPS + 1))

    run = keep_the_start.run
    model = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "start").eval()
    optimizer = torch.optim.AdamW(model.parameters(), PEAK, (0.9, 0.98), 1e-8, weight_decay=0.01)
    examples = batches(run.train_examples, run.plan, 0, STEPS, source_pad_id=run.tokenizers.source.fill_id)
    theirs = list(torch_curve(model, examples, optimizer))
    differences = np.abs(np.array(list(ours.values())) / np.array(theirs) - 1)
    print(f"losses {theirs[0]:.3f} to {theirs[-1]:.3f}; largest relative difference {differences.max():.1e}")
    assert theirs[-1] < theirs[0] - 1 and differences.max() < 1e-3
