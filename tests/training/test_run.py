"""Whole runs on the toy task: what they leave behind, how they go on after a stop, what they refuse."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import seq2seq_jax.training.loop as loop
from seq2seq_jax.config import BatchConfig
from seq2seq_jax.data.plan import BatchPlan
from seq2seq_jax.pretrained.pair import from_pretrained
from seq2seq_jax.training.checkpoints import load_trained, open_store, write_config
from seq2seq_jax.training.loop import TrainingInterrupted, train
from tests.ports import free_port
from tests.training import toy
from tests.weights.checkpoints import equal

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def whole(work):
    """A run from the first step to the last, without a stop."""
    train(toy.config(work), work / "reference")
    return work / "reference"


def test_what_a_run_leaves(whole):
    made = {path.name for path in whole.iterdir()}
    assert made == {"config.json", "weights.txt", "metrics.jsonl", "samples.txt", "scores.json", "tensorboard", "model",
                    "checkpoints", "pretrained"}  # fmt: skip
    assert json.loads((whole / "config.json").read_text())["optimizer"]["learning_rate"] == 1e-3
    assert "initialised (normal)" in (whole / "weights.txt").read_text()
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 6, 6]
    names = {"loss", "tokens", "grad_norm", "update_norm", "learning_rate", "skipped", "skipped_in_a_row"}
    lost = {f"seconds/{what}" for what in ("compile", "data", "evaluation", "checkpoint")}
    names = {"step", *(f"train/{name}" for name in (*names, *lost, "tokens_per_second", "goodput"))}
    assert set(rows[0]) == names and {"eval/loss", "eval/rouge1"} < set(rows[-2])
    run = rows[-1]  # after the last evaluation and checkpoint, which no step's line has
    assert set(run) == {"step", *(f"run/{name}" for name in (*lost, "goodput"))}
    assert rows[-3]["train/seconds/evaluation"] < run["run/seconds/evaluation"] and 0 < run["run/goodput"] < 1
    assert rows[-3]["train/seconds/checkpoint"] < run["run/seconds/checkpoint"]
    samples = (whole / "samples.txt").read_text()
    assert samples.startswith("=== step 6\n\nsource:    ") and samples.count("\nreference: ") == 6
    assert samples.count("\noutput:    ") == 6
    scores = json.loads((whole / "scores.json").read_text())
    assert scores["step"] == 6 and scores["loss"] == rows[-2]["eval/loss"]
    assert [path.name for path in (whole / "checkpoints").iterdir()] == ["6"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(whole / "tensorboard"))
    board.Reload()
    assert {"train/loss", "train/learning_rate", "eval/rouge1"} <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert any(tag.startswith("samples/0") for tag in board.Tags()["tensors"])


def test_export_and_checkpoint_are_the_same_pair(whole):
    exported, checkpoint = load_trained(whole), load_trained(whole, step=6)
    equal(exported.pretrained.params, checkpoint.pretrained.params)
    assert exported.data.max_source_length == 14 and checkpoint.tokenizers.source.vocab_size == 31
    assert exported.pretrained.generation_config == checkpoint.pretrained.generation_config
    assert load_trained(whole / "pretrained").data is None
    with pytest.raises(FileNotFoundError, match="has no step 4; it holds 6"):
        load_trained(whole, step=4)
    with pytest.raises(FileNotFoundError, match="is no workdir of a run"):
        load_trained(whole / "pretrained", step=4)


def test_stopped_and_continued_is_the_same_run(work, whole, capsys):
    stopped, profiled = work / "stopped", toy.config(work, profile_at=2, profile_steps=1)
    with pytest.raises(TrainingInterrupted, match="stopped at step 3"):
        train(profiled, stopped, stop_at=3)
    assert not (stopped / "pretrained").exists()
    assert "a profile of steps 2 to 2 is in" in capsys.readouterr().out
    assert list((stopped / "profile").rglob("*.xplane.pb"))
    # A run that was killed later than its last checkpoint has written more than it remembers.
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/loss": 9.9}\n{"step": 5, "trai')
    (stopped / "samples.txt").write_text("=== step 2\n\nsource: a\n\n=== step 5\n\nsource: b\n")
    train(profiled, stopped)
    assert "no profile: profile_at is 2, and the run goes on from step 3; raise it" in capsys.readouterr().out
    assert toy.records(stopped) == toy.records(whole)
    assert toy.records(stopped, "eval/loss") == toy.records(whole, "eval/loss")
    assert (stopped / "samples.txt").read_text().count("=== step") == 2, "steps 2 and 6"
    equal(from_pretrained(stopped / "pretrained").params, from_pretrained(whole / "pretrained").params)


def test_what_the_number_of_steps_forbids(work, tmp_path):
    with pytest.raises(ValueError, match="profile_at is 7, and the run has 6 steps; lower it"):
        train(toy.config(work, profile_at=7), tmp_path)
    late = ({"match": "encoder", "unfreeze_step": 6}, {"match": ".*"})
    with pytest.raises(ValueError, match=r"unfreeze_step is 6, and the run has 6 steps"):
        train(toy.config(work, optimizer={"groups": late}), tmp_path)


def test_another_chip_may_go_on(work, tmp_path):
    """What one kind of device needs otherwise than another makes no other config; the lengths of batches do."""
    store = SimpleNamespace(latest=lambda: 6)
    write_config(tmp_path, toy.config(work, batch={"length_multiple": 8}), store)
    changes = {"remat": "full", "attention_impl": "cudnn", "loss_chunk": 8, "scan_unroll": 2}
    write_config(tmp_path, toy.config(work, **changes, batch={"accumulation": 2}), store)
    with pytest.raises(ValueError, match=r"config: batch\.length_multiple was 8 and is 128; set that back"):
        write_config(tmp_path, toy.config(work, attention_impl="splash"), store)


def test_the_state_is_donated(work):
    store = open_store(work / "donated", "loss")
    run = loop.Run(toy.config(work), work / "donated", store, loop.make_mesh(data=1))
    arrays = next(loop.batches(run.train_examples, run.plan, 0, 1, source_pad_id=0)).arrays
    placed = {name: jax.numpy.asarray(rows) for name, rows in arrays.items()}
    text = run.step.lower(run._state, placed).as_text()
    given = text.count("jax.buffer_donor = true") + text.count("tf.aliasing_output")
    assert given == len(jax.tree.leaves(run._state)), "arrays of parameters and moments whose memory is taken over"
    store.close()


def test_a_run_by_pmap_finds_its_state_again(work, monkeypatch):
    """Without a step, which takes long to compile; with them: tests/parallel/test_runs.py."""
    states = []

    def save_and_stop(run, start, stop_at):
        states.append(run.state)
        run._save(start + 3, None)
        raise TrainingInterrupted(start + 3)

    monkeypatch.setattr(loop.Run, "_train", save_and_stop)
    for step in (3, 6):
        with pytest.raises(TrainingInterrupted, match=f"stopped at step {step}"):
            train(toy.config(work, mesh={"mode": "pmap"}), work / "pmap")
    assert [int(state.step) for state in states] == [0, 3]
    equal(states[0].params, states[1].params)
    jax.tree.map(np.testing.assert_array_equal, states[0].opt_state, states[1].opt_state)


def test_finished_run_is_not_trained_again(work, whole):
    before = (whole / "metrics.jsonl").read_text(), (whole / "pretrained" / "model.safetensors").read_bytes()
    train(toy.config(work), whole)
    assert before == ((whole / "metrics.jsonl").read_text(), (whole / "pretrained" / "model.safetensors").read_bytes())


def interrupt(monkeypatch, number, *signals):
    """Signals arrive while the step of this number (from 1, of this run) is prepared."""
    shard, calls = loop.shard_batch, []

    def interrupting(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            for each in signals:
                os.kill(os.getpid(), each)
        return shard(*args, **kwargs)

    monkeypatch.setattr(loop, "shard_batch", interrupting)


def test_interrupt_writes_a_checkpoint(work, monkeypatch):
    interrupt(monkeypatch, 2, signal.SIGTERM)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingInterrupted, match=r"stopped at step 2 \(SIGTERM\)"):
        train(toy.config(work), work / "interrupted")
    assert signal.getsignal(signal.SIGTERM) == handler
    assert open_store(work / "interrupted", "loss").latest() == 2


def test_second_interrupt_breaks_off(work, monkeypatch):
    interrupt(monkeypatch, 2, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(toy.config(work), work / "broken")
    assert open_store(work / "broken", "loss").latest() is None


@pytest.mark.slow
def test_evaluation_that_a_signal_put_off(work, whole, monkeypatch):
    """The run that goes on makes up for it, in the middle and at the end, and exports the best."""
    run, config = work / "late", toy.config(work, evaluation={"every": 3, "best": "loss"})
    for step in (3, 6):
        with monkeypatch.context() as patch:
            interrupt(patch, 3, signal.SIGTERM)
            with pytest.raises(TrainingInterrupted, match=f"stopped at step {step}"):
                train(config, run)
    assert open_store(run, "loss").best() == 3, "scored when the run went on"
    train(config, run)
    losses = toy.records(run, "eval/loss")
    assert list(losses) == [3, 6] and losses[6] == toy.records(whole, "eval/loss")[6]
    best = min(losses, key=losses.get)
    assert open_store(run, "loss").best() == best == json.loads((run / "scores.json").read_text())["step"]


@pytest.mark.slow
def test_another_config_or_other_data(work, whole, tmp_path):
    with pytest.raises(ValueError, match=r"holds step 6 of a run with another config: dropout was 0\.1 and is 0\.2;"
                       r" optimizer\.learning_rate was 0\.001 and is 0\.01; set that back"):  # fmt: skip
        train(toy.config(work, dropout=0.2, optimizer={"learning_rate": 1e-2}), whole)
    data = tmp_path / "data.jsonl"
    toy.pairs(data, 40)
    changed = toy.config(work, data={**toy.settings(work)["data"], "train": str(data)})
    with pytest.raises(TrainingInterrupted):
        train(changed, tmp_path / "run", stop_at=1)
    toy.pairs(data, 41)
    with pytest.raises(ValueError, match="was trained on other data: its examples had the fingerprint"):
        train(changed, tmp_path / "run")
    # What does not touch the training may change.
    train(toy.config(work, log_every=5, evaluation={"batch_size": 2}), whole)


def test_best_checkpoint_is_kept_and_exported(work, monkeypatch):
    scores = iter([30.0, 50.0, 40.0, 41.0])
    measured = loop.evaluate

    def scripted(*args, **kwargs):
        found = measured(*args, **kwargs)
        return found._replace(scores={**found.scores, "rouge1": next(scores)})

    monkeypatch.setattr(loop, "evaluate", scripted)
    run = work / "best"
    export = train(toy.config(work, evaluation={"every": 2, "best": "rouge1", "decode_limit": 2}), run)
    assert sorted(int(path.name) for path in (run / "checkpoints").iterdir()) == [4, 6]
    assert json.loads((run / "scores.json").read_text())["step"] == 4
    equal(from_pretrained(export).params, load_trained(run, step=4).pretrained.params)
    assert toy.records(run, "eval/rouge1") == {2: 30.0, 4: 50.0, 6: 40.0}
    sections = (run / "samples.txt").read_text().split("=== step")[1:]
    assert [section.count("reference: ") for section in sections] == [2, 2, 2]


def test_not_finite_stops_with_the_step(work, monkeypatch):
    shard, calls = loop.shard_batch, []

    def poisoned(batch, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            batch = {**batch, "labels": np.full_like(batch["labels"], -100)}
        return shard(batch, *args, **kwargs)

    monkeypatch.setattr(loop, "shard_batch", poisoned)
    with pytest.raises(FloatingPointError, match=r"the loss of step 4 is nan; .* \(step 2 is kept\)"):
        train(toy.config(work, checkpoints={"every": 2}), work / "nan")


def test_learns(work):
    """The whole way, buckets, a token budget and accumulation included, ends in outputs that copy the source."""
    toy.pairs(work / "many.jsonl", 2000, seed=2, longest=5)
    data = {**toy.settings(work)["data"], "train": str(work / "many.jsonl"), "validation": None, "holdout": 50}
    run = work / "learns"
    config = toy.config(
        work, data=data, batch={"tokens": 700, "buckets": 2, "accumulation": 2}, num_steps=0, num_epochs=4.0,
        optimizer={"learning_rate": 1e-2, "warmup_steps": 20, "schedule": "cosine"}, dropout=0.0, log_every=100,
        evaluation={"metrics": ("rouge", "exact_match")}, warm_start={"cross_attention_init": "identity"},
    )  # fmt: skip
    train(config, run)
    scores = json.loads((run / "scores.json").read_text())
    assert scores["exact_match"] > 50, scores


def test_tokenizer_of_another_vocabulary(work, tmp_path):
    toy.checkpoint(tmp_path, extra_words=2)
    with pytest.raises(ValueError, match="has 33 tokens, and the encoder's embedding table 31 rows"):
        train(toy.config(work, encoder=str(tmp_path / "alone")), tmp_path / "run")


def test_lengths_beyond_the_positions(work, tmp_path):
    for name, changes in (
        ("data.max_source_length is 17 and the encoder has 16", {"data": {"max_source_length": 17}}),
        ("data.max_target_length is 17 and the decoder has 16", {"data": {"max_target_length": 17}}),
        ("generation.max_length is 17 and the decoder has 16", {"generation": {"max_length": 17}}),
    ):
        with pytest.raises(ValueError, match=name):
            train(toy.config(work, **changes), tmp_path / "run")


def test_validation_without_targets(work, tmp_path):
    (tmp_path / "empty.jsonl").write_text('{"document": "a b", "summary": ""}\n' * 3)
    data = {**toy.settings(work)["data"], "validation": str(tmp_path / "empty.jsonl")}
    with pytest.raises(ValueError, match=r"empty\.jsonl: all 3 texts under 'summary' are empty"):
        train(toy.config(work, data=data), tmp_path / "run")


def test_batch_that_does_not_divide():
    lengths = np.full(20, 5)
    plan = BatchPlan(lengths, lengths, BatchConfig(size=12, accumulation=2), seed=0)
    mesh = SimpleNamespace(shape={"replica": 1, "data": 2, "fsdp": 2})
    with pytest.raises(ValueError, match=r"a batch of 12 rows does not divide: the mesh splits it 4 ways .*"
                       r" accumulation 2 ways; .* as a multiple of 8"):  # fmt: skip
        loop.check_division(plan, 2, mesh)
    loop.check_division(plan, 3, mesh)


def script(work, workdir, *flags, **environment):
    """scripts/train.py on the toy task, with configs/common.py."""
    values = {"encoder": work / "alone", "decoder": work / "alone", "num_epochs": 0, "log_every": 1, "dropout": 0.1}
    values |= {f"data.{name}": value for name, value in toy.settings(work)["data"].items()}
    values |= {"num_steps": 6, "batch.size": 8, "batch.buckets": 1, "optimizer.learning_rate": 1e-3,
               "generation.max_length": 6, "optimizer.warmup_steps": 0, "evaluation.metrics": "('rouge',)"}  # fmt: skip
    command = [sys.executable, "scripts/train.py", "--config=configs/common.py", f"--workdir={workdir}", *flags]
    command += [f"--config.{name}={value}" for name, value in values.items()]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false", **environment}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finished(process):
    output = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, output[-3000:]
    return output


def close(run, reference):
    """The same losses, but for the order of sums."""
    losses, expected = toy.records(run), toy.records(reference)
    assert list(losses) == list(expected) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(list(losses.values()), list(expected.values()), rtol=1e-5)


@pytest.mark.slow
def test_other_numbers_of_devices_and_processes(work, whole):
    """Begun on 8 devices, and by 2 processes; continued on one. The loss is that of one device all along."""
    eight = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    many = script(work, work / "eight", "--stop_at=3", XLA_FLAGS=eight)
    assert "stopped at step 3" in finished(many)
    flags = ["--stop_at=3", "--distributed", f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    both = [script(work, work / "two", *flags, f"--process_id={i}") for i in range(2)]
    first, second = map(finished, both)
    assert "stopped at step 3" in first and "training: 40 examples" in first
    assert "training: 40 examples" not in second, "only one process speaks"
    for run in (work / "eight", work / "two"):
        config = json.loads((run / "config.json").read_text())
        assert jax.device_count() == 1
        train(toy.from_mapping(toy.TrainConfig, config), run)
        close(run, whole)
