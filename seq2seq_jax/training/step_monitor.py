"""Watches a run's steps: their metrics, tokens per second, time that is lost, a profile of some of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seq2seq_jax.config import TrainConfig
from seq2seq_jax.data.pipeline import HostBatch
from seq2seq_jax.data.plan import Bucket
from seq2seq_jax.parallel.chips import peak_flops
from seq2seq_jax.parallel.progress import ProgressBar, log
from seq2seq_jax.training.metric_writer import MetricWriter
from seq2seq_jax.training.store import Store

# What a run's time goes to beside the steps. Waiting for data may cost nothing: the device works on the step before.
OVERHEADS = ("compile", "data", "evaluation", "checkpoint")


class StepMonitor:
    """Reads the metrics of each step when it has ended, at the latest one step later, so that the device never waits
    for the host; writes those of every `log_every`-th step.

    A line of metrics has, beside the step's own: tokens_per_second (source and target, without padding; compilation and
    pauses are not counted), mfu (model FLOPs utilisation: FLOPs of the model's matrix products per second, as a
    fraction of the devices' 16-bit peak, where that is known), and `time_shares`.
    """

    def __init__(
        self,
        writer: MetricWriter,
        bar: ProgressBar,
        config: TrainConfig,
        last: int,
        store: Store,
        flops: Callable[[int, int, int], float],
    ):
        """
        Args:
          last: the run's last step. flops: from (rows, source length, target length) the FLOPs of a step, over all
            devices.
        """
        self._writer, self._bar, self._last, self._store, self._flops = writer, bar, last, store, flops
        self._every, self._max_skipped = config.log_every, config.optimizer.max_skipped
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        peak = peak_flops(jax.devices()[0].device_kind)
        self._peak = None if peak is None else peak * jax.device_count()
        self._work: dict[Bucket, float] = {}
        self._lost = dict.fromkeys(OVERHEADS, 0.0)
        self._start, self._reached = time.perf_counter(), None
        self._open_window()

    def _open_window(self) -> None:
        """Begins a new interval for the rates."""
        self._tokens, self._done, self._paused, self._begin = 0, 0.0, 0.0, time.perf_counter()

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Counts the time inside as overhead, not as the steps'; `what`: of `OVERHEADS`."""
        begin = time.perf_counter()
        yield
        seconds = time.perf_counter() - begin
        self._lost[what] += seconds
        self._paused += 0.0 if what == "data" else seconds

    def is_first_of_shape(self, bucket: Bucket) -> bool:
        """Whether a step is the first of its shape, so that it must be compiled."""
        if bucket in self._work:
            return False
        self._work[bucket] = self._flops(bucket.rows, bucket.source_length, bucket.target_length)
        return True

    def step(self, number: int, metrics: dict[str, jax.Array], batch: HostBatch) -> None:
        """Takes the metrics of a step that was dispatched, and reads those of the step before; its own too if it has
        ended, as on a CPU without asynchronous dispatch, so that time and tokens are counted up to the same step."""
        self.flush()
        self._pending, self._reached = (number, metrics), number
        self._tokens += batch.tokens
        self._done += self._work[batch.bucket]
        self._bar.update()
        if metrics["loss"].is_ready():
            self.flush()

    def flush(self) -> None:
        """Reads the metrics that are pending."""
        if self._pending is None:
            return
        (number, metrics), self._pending = self._pending, None
        loss = float(metrics["loss"])
        if int(metrics["skipped_in_a_row"]) > self._max_skipped:
            self._stop(number, loss, float(metrics["grad_norm"]))
        if number % self._every == 0 or number == self._last:
            values = {name: float(value) for name, value in jax.device_get(metrics).items()} | self._rates()
            self._open_window()
            self._writer.write_scalars(number, values, "train")
            self._bar.set_postfix(
                loss=f"{loss:.3f}", lr=f"{values['learning_rate']:.1e}", tokens_s=f"{values['tokens_per_second']:.0f}"
            )

    def _rates(self) -> dict[str, float]:
        now = time.perf_counter()
        seconds = max(now - self._begin - self._paused, 1e-9)
        share = {} if self._peak is None else {"mfu": self._done / seconds / self._peak}
        return {"tokens_per_second": self._tokens / seconds, **share, **self.time_shares()}

    def time_shares(self) -> dict[str, float]:
        """seconds/<what> since the start for each of `OVERHEADS`, and goodput, the fraction of the time that went into
        the steps."""
        goodput = 1.0 - sum(self._lost.values()) / (time.perf_counter() - self._start)
        return {**{f"seconds/{what}": seconds for what, seconds in self._lost.items()}, "goodput": goodput}

    def close(self) -> None:
        """Logs, and writes as metrics of the group "run", what the time went to, the last evaluation and checkpoint
        included."""
        if self._reached is None:
            return
        shares = self.time_shares()
        self._writer.write_scalars(self._reached, shares, "run")
        others = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in self._lost.items())
        log(f"{100 * shares['goodput']:.0f} % of the time went into the steps; the rest: {others}")

    def _stop(self, number: int, loss: float, norm: float) -> None:
        latest = self._store.latest()
        saved = "no checkpoint was written yet" if latest is None else f"step {latest} is kept"
        what, value, more = ("loss", loss, "") if not np.isfinite(loss) else ("gradient's norm", norm, "")
        if np.isfinite(value):
            more = ", above optimizer.skip_above times the mean of the last ones"
        if self._max_skipped:
            more += f", and the {self._max_skipped} steps before it were skipped too (optimizer.max_skipped)"
        raise FloatingPointError(
            f"the {what} of step {number} is {value:.4g}{more}; lower optimizer.learning_rate, raise its warmup_steps,"
            f" or look for empty targets in the data ({saved})"
        )


class Profiler:
    """Writes a profile of `count` steps from step `first` on into `directory`, for TensorBoard's profile plugin or
    xprof; None: of no steps."""

    def __init__(self, directory: Path, first: int | None, count: int):
        self._directory, self._first, self._count, self._running = directory, first, count, False

    def before_step(self, number: int) -> None:
        if number == self._first:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after_step(self, number: int, metrics: Any) -> None:
        if self._running and number == self._first + self._count - 1:
            jax.block_until_ready(metrics)
            self.close()
            log(f"a profile of steps {self._first} to {number} is in {self._directory}")

    def close(self) -> None:
        """Ends a profile that has begun."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
