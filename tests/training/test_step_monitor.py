"""What a run tells of itself: rates, lost time, too many bad steps, a profile."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.config import TrainConfig, from_mapping
from seq2seq_jax.data.pipeline import HostBatch
from seq2seq_jax.data.plan import Bucket
from seq2seq_jax.parallel.chips import peak_flops
from seq2seq_jax.training import step_monitor
from seq2seq_jax.training.step_monitor import Profiler, StepMonitor

BATCH = HostBatch(Bucket(4, 10, 5), 50, {})


class Lines(list):
    """A writer, a bar and a store that keep what they are told."""

    def write_scalars(self, step, values, group):
        self.append((step, values))

    def update(self):
        pass

    def set_postfix(self, **values):
        pass

    def latest(self):
        return None


class Number(float):
    """A metric of a step that is still at work, or has ended."""

    def __new__(cls, value, ended=False):
        number = super().__new__(cls, value)
        number.is_ready = lambda: ended
        return number


def metrics(loss=1.0, norm=1.0, in_a_row=0, *, ended=False):
    return {"loss": Number(loss, ended), "grad_norm": norm, "learning_rate": 1e-3, "skipped_in_a_row": in_a_row}


def make_monitor(lines, *, log_every=1000, max_skipped=0):
    values = {"encoder": "a", "decoder": "b", "data": {"train": "c"}, "num_steps": 1000, "log_every": log_every}
    config = from_mapping(TrainConfig, {**values, "optimizer": {"max_skipped": max_skipped}})
    return StepMonitor(lines, lines, config, 1000, lines, lambda *shape: float(np.prod(shape)))


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(step_monitor, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_rates_and_overheads(monkeypatch, clock, capsys):
    monkeypatch.setattr(step_monitor, "peak_flops", lambda kind: 100.0)
    lines = Lines()
    monitor = make_monitor(lines, log_every=2)

    def work(seconds):
        clock.now += seconds

    for number in range(1, 5):
        with monitor.during("data"):
            work(0.5)
        if monitor.is_first_of_shape(BATCH.bucket):
            with monitor.during("compile"):
                work(8.0)
        work(8.0 if number > 1 else 0.0)
        monitor.step(number, metrics(), BATCH)
        if number == 2:
            monitor.flush()
            with monitor.during("evaluation"):
                work(4.0)
            with monitor.during("checkpoint"):
                work(1.0)
    monitor.flush()
    (two, early), (four, late) = lines
    assert (two, four) == (2, 4)
    # 17 seconds, of which 8 were the compiler's; waiting for data is in the steps' time.
    assert early["tokens_per_second"] == pytest.approx(100 / 9) and early["seconds/compile"] == 8
    assert early["mfu"] == pytest.approx(2 * 200 / 9 / 100)
    assert early["goodput"] == pytest.approx(1 - 9 / 17)
    assert late["tokens_per_second"] == pytest.approx(100 / 17)
    overheads = {name: late[f"seconds/{name}"] for name in step_monitor.OVERHEADS}
    assert overheads == {"compile": 8, "data": 2, "evaluation": 4, "checkpoint": 1}
    assert late["goodput"] == pytest.approx(1 - 15 / 39)
    with monitor.during("evaluation"):
        work(9.0)
    monitor.close()
    step, run = lines[2]
    assert step == 4 and run["seconds/evaluation"] == 13 and run["goodput"] == pytest.approx(1 - 24 / 48)
    assert "50 % of the time went into the steps; the rest: compile 8 s, data 2 s, evaluation 13 s" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("ended", [False, True])
def test_rates_are_of_steps_that_ended(clock, ended):
    """Ten steps of 2 s: where each has ended when its call returns, and where the device works on while the host goes
    ahead, which waits for a step when it reads its metrics."""
    lines, now = Lines(), clock
    monitor = make_monitor(lines, log_every=3)
    flush = monitor.flush

    def waiting_flush():
        now.now = max(now.now, 2.0 * (monitor._pending or (0,))[0])
        flush()

    monitor.flush = waiting_flush
    for number in range(1, 11):
        monitor.is_first_of_shape(BATCH.bucket)
        clock.now += 2.0 if ended else 0.0
        monitor.step(number, metrics(ended=ended), BATCH)
    monitor.flush()
    assert [values["tokens_per_second"] for _, values in lines] == pytest.approx([25.0] * 3)


def test_peaks():
    assert peak_flops("TPU v5 lite") == 197e12 and peak_flops("TPU v5") == 459e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12 and peak_flops("Tesla T4") == 65e12
    assert peak_flops("NVIDIA L40S") is None and peak_flops("cpu") is None


def test_a_monitor_without_a_known_peak_tells_no_mfu():
    lines = Lines()
    monitor = make_monitor(lines, log_every=1)
    assert monitor.is_first_of_shape(BATCH.bucket) and not monitor.is_first_of_shape(BATCH.bucket)
    monitor.step(1, metrics(), BATCH)
    monitor.flush()
    assert "mfu" not in lines[0][1] and lines[0][1]["goodput"] <= 1.0


def test_monitor_stops_after_too_many_in_a_row():
    def run(*steps, allowed):
        monitor = make_monitor(Lines(), max_skipped=allowed)
        for number, (loss, norm, row) in enumerate(steps, 1):
            monitor.is_first_of_shape(BATCH.bucket)
            monitor.step(number, metrics(loss, norm, row), BATCH)
        monitor.flush()

    run((np.nan, np.nan, 1), (1.0, 1.0, 0), (1.0, np.inf, 1), (1.0, 9.0, 2), allowed=2)
    for steps, allowed, message in (
        ([(1.0, np.inf, 1)], 0, r"^the gradient's norm of step 1 is inf; lower"),
        (
            [(1.0, 9.0, 1), (1.0, 9.5, 2)],
            1,
            r"norm of step 2 is 9\.5, above .*skip_above .* the 1 steps before it were",
        ),
        ([(np.nan, 9.0, 1)], 0, r"^the loss of step 1 is nan; lower .* \(no checkpoint was written yet\)$"),
    ):
        with pytest.raises(FloatingPointError, match=message):
            run(*steps, allowed=allowed)


def test_profile(tmp_path, capsys):
    profile = Profiler(tmp_path / "profile", 2, 2)
    for number in range(1, 5):
        profile.before_step(number)
        profile.after_step(number, jnp.ones(3) * number)
        assert (tmp_path / "profile").exists() == (number >= 3)
    profile.close()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert "a profile of steps 2 to 3 is in" in capsys.readouterr().out
    broken_off = Profiler(tmp_path / "other", 1, 5)
    broken_off.before_step(1)
    broken_off.close()
    assert list((tmp_path / "other").rglob("*.xplane.pb"))
    Profiler(tmp_path / "none", None, 3).before_step(1)
    assert not (tmp_path / "none").exists()
