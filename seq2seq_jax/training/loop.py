"""Fine-tunes a pair: from a config to a directory that torch loads, with metrics, samples and checkpoints."""

from __future__ import annotations

import functools
import json
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from seq2seq_jax.config import EncoderDecoderConfig, TrainConfig
from seq2seq_jax.data.pipeline import HostBatch, batches
from seq2seq_jax.data.plan import BatchPlan
from seq2seq_jax.evaluation.metrics import check_tokenizers
from seq2seq_jax.inference.evaluate import Evaluation, evaluate
from seq2seq_jax.models.cpu import release_memory
from seq2seq_jax.models.transformer import check_length
from seq2seq_jax.parallel.data_parallel import AXIS, PmapStep, unreplicate
from seq2seq_jax.parallel.mesh import batch_parts, local_rows, make_mesh, shard_batch
from seq2seq_jax.parallel.multihost import is_first
from seq2seq_jax.parallel.progress import log, progress_bar
from seq2seq_jax.pretrained.saving import save_pretrained, save_without_params
from seq2seq_jax.text.tokenizer import Tokenizers
from seq2seq_jax.training import checkpoints
from seq2seq_jax.training.flops import useful_flops
from seq2seq_jax.training.groups import check_unfreezing
from seq2seq_jax.training.metric_writer import MetricWriter
from seq2seq_jax.training.setup import check_backend, frozen_new_params, load_examples, make_training, warm_start
from seq2seq_jax.training.state import TrainState
from seq2seq_jax.training.step_monitor import Profiler, StepMonitor
from seq2seq_jax.training.store import Store
from seq2seq_jax.weights.workdir import CHECKPOINTS, CONFIG, EXPORT, MODEL

REPORT, SCORES, PROFILE = "weights.txt", "scores.json", "profile"


class TrainingInterrupted(Exception):
    """A signal, or stop_at, ended the run after a step whose checkpoint is written.

    Attributes:
      step: the last one done. signal: number of the signal; None: stop_at.
    """

    def __init__(self, step: int, signal_number: signal.Signals | None = None):
        why = "asked to" if signal_number is None else signal_number.name
        super().__init__(f"stopped at step {step} ({why}); the same command goes on from there")
        self.step, self.signal = step, signal_number


def train(config: TrainConfig, workdir: str | Path, *, stop_at: int | None = None) -> Path:
    """Runs one fine-tuning, or goes on with it from its last checkpoint, and returns the exported directory.

    The workdir gets config.json (as resolved), weights.txt (the weight report), model/ (configs and tokenizers),
    checkpoints/<step>/, metrics.jsonl, samples.txt, tensorboard/, and in the end pretrained/ and scores.json.

    Args:
      stop_at: a step after which to stop, as an interrupt would.

    Raises:
      TrainingInterrupted: after an interrupt (SIGINT, SIGTERM) or at `stop_at`, when a checkpoint is written.
      FloatingPointError: if more than optimizer.max_skipped steps in a row had a loss or gradient that is not finite or
        too large; names the step.
      ValueError, FileNotFoundError: for what is wrong with config, data or workdir.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    store = checkpoints.open_store(workdir, config.evaluation.best, config.checkpoints.keep)
    try:
        checkpoints.write_config(workdir, config, store)
        mesh = make_mesh(**config.mesh.sizes)
        with nullcontext() if config.mesh.mode == "pmap" else jax.set_mesh(mesh):
            return Run(config, workdir, store, mesh).complete(stop_at)
    finally:
        store.close()


class Run:
    """One fine-tuning in a workdir: prepares all; `complete` trains, evaluates and exports."""

    def __init__(self, config: TrainConfig, workdir: Path, store: Store, mesh: Mesh):
        self.config, self.workdir, self.store, self.mesh = config, workdir, store, mesh
        by_pmap = config.mesh.mode == "pmap"
        if by_pmap:  # all but the step runs on the first device alone
            _check_one_process()
            self.mesh = make_mesh(devices=mesh.devices.flatten()[:1])

        check_backend(config.attention_impl)
        check_tokenizers(config.evaluation.metrics, **config.evaluation.tokenizers)

        # Data.
        self.tokenizers = Tokenizers.load(config.encoder, config.decoder)
        self.train_examples, self.validation_examples = load_examples(config.data, self.tokenizers, seed=config.seed)
        log(f"training: {self.train_examples.counts}\nvalidation: {self.validation_examples.counts}")
        self.plan = BatchPlan(
            self.train_examples.source_lengths, self.train_examples.target_lengths, config.batch, seed=config.seed
        )
        self.num_steps = config.num_steps or math.ceil(config.num_epochs * self.plan.batches_per_epoch)
        log(_plan_text(self.plan, self.num_steps))
        check_unfreezing(config.optimizer, self.num_steps)
        for rule in (config.optimizer, *config.optimizer.groups):
            if (rule.warmup_steps or 0) > self.num_steps:
                log(f"a warm-up of {rule.warmup_steps} steps is longer than the run, whose rates stay below their peak")
        if (config.profile_at or 0) > self.num_steps:
            raise ValueError(f"profile_at is {config.profile_at}, and the run has {self.num_steps} steps; lower it")
        check_division(self.plan, config.batch.accumulation, mesh)

        # Model.
        self.pretrained = warm_start(config, self.mesh, self.tokenizers)
        _check_lengths(self.plan, self.pretrained.config)
        log(self.pretrained.report)
        if is_first():
            (workdir / REPORT).write_text(str(self.pretrained.report) + "\n", encoding="utf-8")
        save_without_params(workdir / MODEL, self.pretrained, **_saved(self.tokenizers))

        # Step.
        model, params = self.pretrained.model, self.pretrained.params
        training = make_training(config, model, params, self.num_steps, axis_name=AXIS if by_pmap else None)
        state = training.init_state(params)
        log(_size_text(state.params, training.groups.frozen))
        if frozen := frozen_new_params(self.pretrained, training.groups):
            log(
                f"{len(frozen)} new parameters that no checkpoint holds are frozen and stay as they start, such as"
                f" {frozen[0]}; train them by a group of optimizer.groups that comes before the frozen one"
            )
        self.pretrained = self.pretrained.replace(params=None)
        if by_pmap:
            self.step = PmapStep(training.train_step, mesh.devices.flatten())
        else:
            # The state keeps its shardings, so that the next step needs no program of its own.
            self.step = jax.jit(training.train_step, donate_argnums=0, out_shardings=(state.shardings(), None))
        self.training, self.state = training, state
        self.flops = functools.partial(useful_flops, training.model, training.model_frozen)

    @property
    def state(self) -> TrainState:
        """The state after the last step; with pmap, the first of its copies."""
        return unreplicate(self._state) if isinstance(self.step, PmapStep) else self._state

    @state.setter
    def state(self, state: TrainState) -> None:
        self._state = self.step.replicate(state) if isinstance(self.step, PmapStep) else state

    def _placed(self, batch: HostBatch) -> Mapping[str, Any]:
        """A batch as arrays that the step takes, on the mesh."""
        if isinstance(self.step, PmapStep):
            return batch.arrays
        return shard_batch(batch.arrays, self.mesh, rows=batch.bucket.rows)

    def complete(self, stop_at: int | None = None) -> Path:
        """Trains, evaluates, exports."""
        start = self.store.latest() or 0
        if start:
            self._restore(start)
            log(f"going on from step {start} of {self.num_steps}")
        self.writer = MetricWriter(self.workdir, start)
        try:
            return self._finish(self._train(start, stop_at))
        finally:
            self.writer.close()

    def _save(self, step: int, scores: Mapping[str, float] | None) -> None:
        eval_params = self.training.eval_params(self.state) if self.training.has_eval_params else None
        checkpoints.save(self.store, step, self.state, eval_params, self.train_examples.fingerprint, scores)

    def _restore(self, step: int) -> None:
        has_eval_params = self.training.has_eval_params
        self.state = checkpoints.restore(
            self.store, step, self.state, self.train_examples.fingerprint, has_eval_params=has_eval_params
        )

    def evaluate(self, params: Any, *, decode_all: bool = False) -> Evaluation:
        """Scores on the validation examples; decodes all of them, or evaluation.decode_limit."""
        settings = self.config.evaluation
        return evaluate(
            self.pretrained.replace(params=params),
            self.validation_examples,
            self.tokenizers,
            self.mesh,
            metrics=settings.metrics,
            tokenizers_of_metrics=settings.tokenizers,
            batch_size=settings.batch_size,
            decode_limit=None if decode_all else settings.decode_limit,
            loss_config=self.config.loss,
            progress=is_first(),
        )

    def _is_evaluated(self, number: int) -> bool:
        """Whether the run evaluates after a step."""
        return number == self.num_steps or _every(number, self.config.evaluation.every)

    def _evaluate(self, number: int) -> Evaluation:
        evaluation = self.evaluate(self.training.eval_params(self.state))
        self.writer.write_evaluation(number, evaluation)
        return evaluation

    def _evaluate_first(self, start: int) -> Evaluation | None:
        """The evaluation before the first step, if one is due."""
        if start == 0:
            return self._evaluate(0) if self.config.evaluation.at_start else None
        if not self._is_evaluated(start) or self.store.scored(start):
            return None
        evaluation = self._evaluate(start)  # a signal prevented it when the step was done
        self.store.add_scores(start, evaluation.scores)
        return evaluation

    def _train(self, start: int, stop_at: int | None) -> Evaluation | None:
        """Steps `start` to the last one, with evaluations and checkpoints; returns the last evaluation."""
        config = self.config
        planned = batches(
            self.train_examples,
            self.plan,
            start,
            self.num_steps,
            source_pad_id=self.tokenizers.source.fill_id,
            local_rows=functools.partial(local_rows, self.mesh),
        )
        bar = progress_bar(total=self.num_steps, initial=start, desc="train", unit="step", disable=not is_first())
        with bar, ExitStack() as stack, _interrupts() as interrupted:
            monitor = StepMonitor(self.writer, bar, config, self.num_steps, self.store, self.flops)
            stack.callback(monitor.close)
            profiler = Profiler(self.workdir / PROFILE, config.profile_at, config.profile_steps)
            if config.profile_at is not None and config.profile_at <= start:
                log(f"no profile: profile_at is {config.profile_at}, and the run goes on from step {start}; raise it")
            stack.callback(profiler.close)
            with monitor.during("evaluation"):
                evaluation = self._evaluate_first(start)
            for number in range(start + 1, self.num_steps + 1):
                with monitor.during("data"):
                    batch = next(planned)
                placed = self._placed(batch)
                first = monitor.is_first_of_shape(batch.bucket)
                if first:
                    with monitor.during("compile"):
                        self.step.lower(self._state, placed).compile()  # the call below finds it
                profiler.before_step(number)
                self._state, metrics = self.step(self._state, placed)
                profiler.after_step(number, metrics)
                if first:
                    release_memory()
                monitor.step(number, metrics, batch)
                signalled = interrupted()
                stop = signalled is not None or number == stop_at
                due = self._is_evaluated(number)
                if due or stop or _every(number, config.checkpoints.every):
                    monitor.flush()
                    # After a signal time may be short: the next run evaluates instead.
                    with monitor.during("evaluation"):
                        evaluation = self._evaluate(number) if due and signalled is None else None
                    scores = evaluation and evaluation.scores
                    with monitor.during("checkpoint"):
                        self._save(number, scores)
                if stop:
                    raise TrainingInterrupted(number, signalled)
        return evaluation

    def _finish(self, last: Evaluation | None) -> Path:
        """Exports the best checkpoint with its scores on all validation examples."""
        best = self.store.best() or self.num_steps
        if best != self.num_steps:
            log(f"the best {self.config.evaluation.best} was that of step {best}, which is exported")
            self._restore(best)
        limit = self.config.evaluation.decode_limit
        if best != self.num_steps or last is None or (limit is not None and limit < len(self.validation_examples)):
            last = self.evaluate(self.training.eval_params(self.state), decode_all=True)
        export = self.workdir / EXPORT
        save_pretrained(
            export, self.pretrained.replace(params=self.training.eval_params(self.state)), **_saved(self.tokenizers)
        )
        if is_first():
            content = {"step": best, **last.scores, "signatures": last.signatures}
            (self.workdir / SCORES).write_text(json.dumps(content, indent=2) + "\n")
        log(f"\nscores of step {best} on {len(last.samples)} validation examples (all in {self.workdir / SCORES}):")
        for name, value in last.scores.items():
            log(f"{name} {value:.2f}")
        for name, signature in last.signatures.items():
            log(f"{name}: {signature}")
        log(
            f"\nmade in {self.workdir}:\n"
            f"  {EXPORT}/  the trained pair (torch's EncoderDecoderModel.from_pretrained loads it too)\n"
            f"  {CHECKPOINTS}/{best}/  its checkpoint, with the optimizer's state\n"
            f"  samples.txt, metrics.jsonl, {REPORT}, {CONFIG}, tensorboard/"
        )
        return export


def _every(number: int, count: int | None) -> bool:
    return count is not None and number % count == 0


@contextmanager
def _interrupts() -> Iterator[Callable[[], signal.Signals | None]]:
    """A function that returns the signal that came, SIGINT or SIGTERM, or None; a second SIGINT breaks off at once.

    With several processes a signal to one of them would leave the others waiting, so there it acts as usual.
    """
    came: list[signal.Signals] = []
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def note(number, frame):
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(signal.Signals(number))

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: came[0] if came else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_one_process() -> None:
    if jax.process_count() > 1:
        raise ValueError(f"mesh.mode is pmap, which is for one process, and there are {jax.process_count()}; give jit")


def check_division(plan: BatchPlan, accumulation: int, mesh: Mesh) -> None:
    """Raises ValueError if the mesh, or the accumulation, does not divide a batch."""
    parts = batch_parts(mesh) * accumulation
    for bucket in plan.buckets:
        if bucket.rows % parts:
            raise ValueError(
                f"a batch of {bucket.rows} rows does not divide: the mesh splits it {batch_parts(mesh)} ways"
                f" (replica x data x fsdp), accumulation {accumulation} ways; give batch.size (with batch.tokens:"
                " batch.multiple)"
                f" as a multiple of {parts}, or another mesh"
            )


def _check_lengths(plan: BatchPlan, pair: EncoderDecoderConfig) -> None:
    """A ValueError if an example, or the length that it is padded to, exceeds a side's positions. Checked here, since a
    compiled step does not know where in a packed row an example ends."""
    last = plan.buckets[-1]
    longest = plan.longest if plan.packed else (last.source_length, last.target_length)
    for side, length in zip((pair.encoder, pair.decoder), longest):
        check_length(side, length)


def _plan_text(plan: BatchPlan, num_steps: int) -> str:
    shapes = ", ".join(f"{b.rows} x ({b.source_length} + {b.target_length})" for b in plan.buckets)
    epochs = num_steps / plan.batches_per_epoch
    rows = "rows of packed examples" if plan.packed else "examples"
    source, target = (f"{100 * real / held:.0f} %" for real, held in zip(plan.tokens, plan.padded_tokens))
    full = 100 * sum(plan.tokens) / sum(plan.padded_tokens)
    return (
        f"{num_steps} steps are {epochs:.2f} epochs; batches are {rows} x (source + target tokens): {shapes};"
        f" {full:.0f} % of these tokens are no padding ({source} of the source's, {target} of the target's)"
    )


def _size_text(params: Any, frozen: Any) -> str:
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    if frozen is None:
        return f"{total:,} parameters"
    fixed = sum(x.size for x, fix in zip(jax.tree.leaves(params), jax.tree.leaves(frozen)) if fix)
    return f"{total:,} parameters, of which {fixed:,} are frozen"


def _saved(tokenizers: Tokenizers) -> dict[str, Any]:
    target = None if tokenizers.target is tokenizers.source else tokenizers.target
    return {"tokenizer": tokenizers.source, "target_tokenizer": target}
