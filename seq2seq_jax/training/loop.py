"""Fine-tuning a pair: from a config to a directory that torch loads, with everything kept that a person looks at."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from seq2seq_jax.config import TrainConfig
from seq2seq_jax.data.pipeline import batches
from seq2seq_jax.data.plan import BatchPlan
from seq2seq_jax.data.text import Tokenizers
from seq2seq_jax.evaluation.evaluate import Evaluation, evaluate
from seq2seq_jax.parallel.mesh import batch_parts, local_rows, make_mesh, shard_batch
from seq2seq_jax.parallel.multihost import is_first
from seq2seq_jax.training import checkpoints
from seq2seq_jax.training.journal import Journal, say
from seq2seq_jax.training.optimizers import frozen_parameters
from seq2seq_jax.training.setup import load_examples, training_step, warm_start
from seq2seq_jax.training.step import TrainState
from seq2seq_jax.weights.native import Store
from seq2seq_jax.weights.pretrained import save_frame, save_pretrained

REPORT, SCORES = "weights.txt", "scores.json"


class Stopped(Exception):
    """The run was told to stop, and has written a checkpoint; `step` is the one it reached."""

    def __init__(self, step: int, why: str):
        super().__init__(f"stopped at step {step} ({why}); the same command goes on from there")
        self.step = step


def train(config: TrainConfig, workdir: str | Path, *, stop_at: int | None = None) -> Path:
    """Runs one fine-tuning, or goes on with it from its last checkpoint, and returns the exported directory.

    The workdir gets config.json (as resolved), weights.txt (the weight report), model/ (configs and tokenizers),
    checkpoints/<step>/, metrics.jsonl, samples.txt, tensorboard/, and in the end pretrained/ and scores.json.

    Args:
      stop_at: a step after which to stop, as an interrupt would.

    Raises:
      Stopped: after an interrupt (SIGINT, SIGTERM) or at `stop_at`, when a checkpoint is written.
      FloatingPointError: if the loss is not finite; names the step.
      ValueError, FileNotFoundError: for what is wrong with config, data or workdir.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    store = checkpoints.open_store(workdir, config.evaluation.best, config.checkpoints.keep)
    try:
        checkpoints.claim(workdir, config, store)
        mesh = make_mesh(**dataclasses.asdict(config.mesh))
        with jax.set_mesh(mesh):
            return Run(config, workdir, store, mesh).complete(stop_at)
    finally:
        store.close()


class Run:
    """One fine-tuning in a workdir; `complete` does it all."""

    def __init__(self, config: TrainConfig, workdir: Path, store: Store, mesh: Mesh):
        self.config, self.workdir, self.store, self.mesh = config, workdir, store, mesh

        # Data.
        self.tokenizers = Tokenizers.load(config.encoder, config.decoder)
        self.train, self.validation = load_examples(config.data, self.tokenizers, seed=config.seed)
        say(f"training: {self.train.counts}\nvalidation: {self.validation.counts}")
        self.plan = BatchPlan(self.train.source_lengths, self.train.target_lengths, config.batch, seed=config.seed)
        self.num_steps = config.num_steps or math.ceil(config.num_epochs * self.plan.batches_per_epoch)
        say(_plan_text(self.plan, self.num_steps))
        check_division(self.plan, config.batch.accumulation, mesh)

        # Model.
        self.pretrained = warm_start(config, mesh, self.tokenizers)
        say(self.pretrained.report)
        if is_first():
            (workdir / REPORT).write_text(str(self.pretrained.report) + "\n", encoding="utf-8")
        frozen = frozen_parameters(self.pretrained.params, config.optimizer.freeze)
        say(_size_text(self.pretrained.params, frozen))
        save_frame(workdir / checkpoints.FRAME, self.pretrained, **_saved(self.tokenizers))

        # Step.
        step, tx = training_step(config, self.pretrained.model, frozen, self.num_steps)
        self.step = jax.jit(step, donate_argnums=0)
        # The state takes the parameters over: each step consumes them.
        self.state = TrainState.create(self.pretrained.params, tx)
        self.pretrained = self.pretrained.replace(params=None)

    def complete(self, stop_at: int | None = None) -> Path:
        """Trains, evaluates, exports."""
        start = self.store.latest() or 0
        if start:
            self.state = checkpoints.restore(self.store, start, self.state, self.train.fingerprint)
            say(f"going on from step {start} of {self.num_steps}")
        self.journal = Journal(self.workdir, start)
        try:
            if start == 0 and self.config.evaluation.at_start:
                self._measure(0)
            last = None
            if start and self._measured(start) and not self.store.scored(start):  # the signal came just before
                last = self._measure(start)
                self.store.add_scores(start, last.scores)
            last = self._train(start, stop_at) or last
            return self._finish(last)
        finally:
            self.journal.close()

    def evaluate(self, params: Any, *, whole: bool = False) -> Evaluation:
        """Scores on the validation examples; decodes all of them, or as many as the config says."""
        settings = self.config.evaluation
        return evaluate(
            self.pretrained.replace(params=params),
            self.validation,
            self.tokenizers,
            self.mesh,
            metrics=settings.metrics,
            batch_size=settings.batch_size,
            decode_limit=None if whole else settings.decode_limit,
            progress=is_first(),
        )

    def _measured(self, number: int) -> bool:
        """Whether a step is one to evaluate at."""
        return number == self.num_steps or _every(number, self.config.evaluation.every)

    def _measure(self, number: int) -> Evaluation:
        evaluation = self.evaluate(self.state.params)
        self.journal.evaluation(number, evaluation)
        return evaluation

    def _train(self, start: int, stop_at: int | None) -> Evaluation | None:
        """Steps `start` to the last one, with evaluations and checkpoints; returns the last evaluation."""
        config, evaluation = self.config, None
        planned = batches(
            self.train,
            self.plan,
            start,
            self.num_steps,
            source_pad_id=self.tokenizers.source.fill_id,
            local_rows=functools.partial(local_rows, self.mesh),
        )
        bar = tqdm(total=self.num_steps, initial=start, desc="train", unit="step", disable=not is_first())
        with bar, _interrupts() as interrupted:
            meter = Meter(self.journal, bar, config.log_every, self.num_steps, self.store)
            for number, batch in enumerate(planned, start + 1):
                self.state, metrics = self.step(self.state, shard_batch(batch.arrays, self.mesh, rows=batch.rows))
                meter.step(number, metrics, batch.tokens)
                signalled = interrupted()
                stop = signalled or ("asked to" if number == stop_at else None)
                measure = self._measured(number)
                if measure or stop or _every(number, config.checkpoints.every):
                    meter.flush()
                    # After a signal the time may be short: the next run makes up for it.
                    evaluation = self._measure(number) if measure and not signalled else None
                    scores = evaluation and evaluation.scores
                    checkpoints.save(self.store, number, self.state, self.train.fingerprint, scores)
                    meter.pause_over()
                if stop:
                    raise Stopped(number, stop)
        return evaluation

    def _finish(self, last: Evaluation | None) -> Path:
        """Exports the best checkpoint with its scores on all validation examples."""
        best = self.store.best() or self.num_steps
        if best != self.num_steps:
            say(f"the best {self.config.evaluation.best} was that of step {best}, which is exported")
            self.state = checkpoints.restore(self.store, best, self.state, self.train.fingerprint)
        limit = self.config.evaluation.decode_limit
        if best != self.num_steps or last is None or (limit is not None and limit < len(self.validation)):
            last = self.evaluate(self.state.params, whole=True)
        export = self.workdir / checkpoints.EXPORT
        save_pretrained(export, self.pretrained.replace(params=self.state.params), **_saved(self.tokenizers))
        if is_first():
            (self.workdir / SCORES).write_text(json.dumps({"step": best, **last.scores}, indent=2) + "\n")
        say(f"\nscores of step {best} on {len(last.samples)} validation examples (all in {self.workdir / SCORES}):")
        for name, value in last.scores.items():
            say(f"{name} {value:.2f}")
        say(
            f"\nmade in {self.workdir}:\n"
            f"  {checkpoints.EXPORT}/  the trained pair (torch's EncoderDecoderModel.from_pretrained loads it too)\n"
            f"  {checkpoints.STORE}/{best}/  its checkpoint, with the optimizer's state\n"
            f"  samples.txt, metrics.jsonl, {REPORT}, {checkpoints.CONFIG}, tensorboard/"
        )
        return export


class Meter:
    """Watches the steps: reads their metrics one step late, so that the device never waits for the host."""

    def __init__(self, journal: Journal, bar: tqdm, every: int, last: int, store: Store):
        self._journal, self._bar, self._every, self._last, self._store = journal, bar, every, last, store
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._compiled = False
        self.pause_over()

    def step(self, number: int, metrics: dict[str, jax.Array], tokens: int) -> None:
        """Takes the metrics of a step that was begun, and reads those of the step before."""
        self.flush()
        self._pending = (number, metrics)
        self._tokens += tokens
        self._bar.update()

    def flush(self) -> None:
        """Reads what is still to be read."""
        if self._pending is None:
            return
        (number, metrics), self._pending = self._pending, None
        loss = float(metrics["loss"])
        if not np.isfinite(loss):
            kept = self._store.latest()
            saved = "no checkpoint was written yet" if kept is None else f"step {kept} is kept"
            raise FloatingPointError(
                f"the loss of step {number} is {loss}; lower optimizer.learning_rate, raise its warmup_steps, or look"
                f" for empty targets in the data ({saved})"
            )
        if not self._compiled:  # the first step's time is the compiler's
            self._compiled = True
            self.pause_over()
        if number % self._every == 0 or number == self._last:
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            now = time.perf_counter()
            values["tokens_per_second"] = self._tokens / max(now - self._begin, 1e-9)
            self._tokens, self._begin = 0, now
            self._journal.scalars(number, values, "train")
            self._bar.set_postfix(
                loss=f"{loss:.3f}", lr=f"{values['learning_rate']:.1e}", tokens_s=f"{values['tokens_per_second']:.0f}"
            )

    def pause_over(self) -> None:
        """Evaluations and checkpoints do not count as time of the steps."""
        self._tokens, self._begin = 0, time.perf_counter()


def _every(number: int, count: int | None) -> bool:
    return count is not None and number % count == 0


@contextmanager
def _interrupts() -> Iterator[Any]:
    """A function that tells whether SIGINT or SIGTERM came; a second SIGINT breaks off at once.

    Where several processes work as one, a signal to one of them would leave the others waiting: it acts as usual there.
    """
    came: list[str] = []
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def note(number, frame):
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: came[0] if came else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_division(plan: BatchPlan, accumulation: int, mesh: Mesh) -> None:
    """Raises ValueError if the mesh, or the accumulation, does not divide a batch."""
    parts = batch_parts(mesh) * accumulation
    for bucket in plan.buckets:
        if bucket.rows % parts:
            raise ValueError(
                f"a batch of {bucket.rows} examples does not divide: the mesh splits it {batch_parts(mesh)} ways"
                f" (replica x data x fsdp), accumulation {accumulation} ways; give batch.size (with batch.tokens:"
                " batch.multiple)"
                f" as a multiple of {parts}, or another mesh"
            )


def _plan_text(plan: BatchPlan, num_steps: int) -> str:
    shapes = ", ".join(f"{b.rows} x ({b.source_length} + {b.target_length})" for b in plan.buckets)
    epochs = num_steps / plan.batches_per_epoch
    return f"{num_steps} steps are {epochs:.2f} epochs; batches are examples x (source + target tokens): {shapes}"


def _size_text(params: Any, frozen: Any) -> str:
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    if frozen is None:
        return f"{total:,} parameters"
    fixed = sum(x.size for x, fix in zip(jax.tree.leaves(params), jax.tree.leaves(frozen)) if fix)
    return f"{total:,} parameters, of which {fixed:,} are frozen"


def _saved(tokenizers: Tokenizers) -> dict[str, Any]:
    target = None if tokenizers.target is tokenizers.source else tokenizers.target
    return {"tokenizer": tokenizers.source, "target_tokenizer": target}
