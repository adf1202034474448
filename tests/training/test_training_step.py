"""What a step does beside the update: averages, skipped steps, loss scale, adapters, metrics of groups."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import seq2seq_jax.training.loop as loop
from seq2seq_jax.config import LoraConfig, OptimizerConfig, TrainConfig, from_mapping
from seq2seq_jax.inference.trained import load_trained
from seq2seq_jax.pretrained.loading import from_pretrained
from seq2seq_jax.pretrained.saving import save_pretrained
from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_configs
from seq2seq_jax.training import lora
from seq2seq_jax.training.groups import assign_groups
from seq2seq_jax.training.loop import TrainingInterrupted, train
from seq2seq_jax.training.setup import make_training
from seq2seq_jax.training.skip_step import SkipState, skip_step
from tests.training import toy
from tests.weights.checkpoints import BERT, TOKENS, equal, noisy


def training(pair, **values):
    values = {"encoder": "a", "decoder": "b", "data": {"train": "c"}, "num_steps": 10, "dropout": 0.0, **values}
    made = make_training(from_mapping(TrainConfig, values), pair.model, pair.params, 10)
    return made, jax.jit(made.train_step), made.init_state(pair.params)


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def test_averages_skipped_steps_and_metrics(pair, batch):
    rules = ({"match": "encoder", "name": "lower", "learning_rate": 1e-3}, {"match": ".*", "name": "upper"})
    optimizer = {"learning_rate": 1e-2, "groups": rules, "freeze": ["encoder.embeddings"], "max_skipped": 3}
    made, step, begin = training(pair, optimizer=optimizer, ema_decay=0.75)
    assert same(made.eval_params(begin), pair.params)
    first, metrics = step(begin, batch)
    norms = [float(metrics[f"grad_norm/{label}"]) for label in ("lower", "upper")]
    assert math.hypot(*norms) == pytest.approx(float(metrics["grad_norm"]), rel=1e-5) and min(norms) > 0
    norms = [float(metrics[f"update_norm/{label}"]) for label in ("lower", "upper")]
    assert math.hypot(*norms) == pytest.approx(float(metrics["update_norm"]), rel=1e-5) and min(norms) > 0
    assert float(metrics["learning_rate/lower"]) == pytest.approx(1e-3)
    assert float(metrics["learning_rate/upper"]) == float(metrics["learning_rate"]) == pytest.approx(1e-2)
    assert not [name for name in metrics if "embeddings" in name], "a frozen group has no norms"
    alone = ({"match": "encoder", "freeze": True}, {"match": ".*", "learning_rate": 3e-4})
    alone, _, _ = training(pair, optimizer={"learning_rate": 1e-2, "groups": alone})
    assert float(jax.jit(alone.train_step)(alone.init_state(pair.params), batch)[1]["learning_rate"]) == pytest.approx(
        3e-4
    )
    fewer, _, _ = training(pair, optimizer=optimizer, ema_decay=0.75, update_norm=False)
    shown = jax.eval_shape(fewer.train_step, begin, batch)[1]
    assert set(metrics) - set(shown) == {"update_norm", "update_norm/lower", "update_norm/upper"} and shown

    # One without targets: its loss is nan. Only counters move.
    bad = {**batch, "labels": np.full_like(batch["labels"], -100)}
    second, metrics = step(first, bad)
    assert same((first.params, first.opt_state, first.ema), (second.params, second.opt_state, second.ema))
    assert not np.isfinite(metrics["loss"])
    assert int(metrics["skipped"]) == int(metrics["skipped_in_a_row"]) == 1 and int(second.step) == 2
    third, metrics = step(second, batch)
    direct, expected = step(first, batch)
    assert same((third.params, third.opt_state, third.ema), (direct.params, direct.opt_state, direct.ema))
    assert float(metrics["learning_rate"]) == float(expected["learning_rate"]) < 1e-2, "the schedule waited"
    assert int(metrics["skipped"]) == 1 and int(metrics["skipped_in_a_row"]) == 0

    usable = flatten_dict(made.eval_params(third), sep="/")
    trees = [flatten_dict(tree, sep="/") for tree in (pair.params, first.params, third.params)]
    for path, average in usable.items():
        start, one, two = (tree[path] for tree in trees)
        np.testing.assert_allclose(average, 0.5625 * start + 0.1875 * one + 0.25 * two, atol=1e-6, err_msg=path)
    assert not [path for path in flatten_dict(third.ema, sep="/") if path.startswith("encoder/embeddings")]


def test_norms_far_above_the_mean_are_skipped():
    skips, ok, norm = SkipState.create(), jnp.asarray(1.0), lambda x: jnp.asarray(x, jnp.float32)
    skip, _ = skip_step(skips, ok, norm(1e6), skip_above=3.0)
    assert not skip, "nothing is known yet"
    for value in 10 * [1.0]:
        _, skips = skip_step(skips, ok, norm(value), skip_above=3.0)
    skip, skips = skip_step(skips, ok, norm(2.9), skip_above=3.0)
    assert not skip and float(skips.mean_norm) == pytest.approx((10 + 2.9) / 11)
    for row, value in enumerate((4.0, jnp.nan, jnp.inf), 1):
        skip, after = skip_step(skips, ok, norm(value), skip_above=3.0)
        assert skip and int(after.in_a_row) == row == int(after.skipped)
        assert float(after.mean_norm) == float(skips.mean_norm) and int(after.norms) == 11
        skips = after
    assert not skip_step(skips, ok, norm(4.0))[0], "without skip_above"


@pytest.mark.slow
def test_float16_halves_its_scale_and_recovers(pair, batch):
    optimizer = {"learning_rate": 1e-2, "schedule": "constant"}
    _, step, begin = training(pair, dtype="float16", optimizer=optimizer)
    assert float(begin.skip_state.loss_scale) == 2.0**15
    raised = begin.replace(skip_state=begin.skip_state.replace(loss_scale=jnp.asarray(2.0**40)))
    state, metrics = step(raised, batch)
    assert same((state.params, state.opt_state), (begin.params, begin.opt_state)) and np.isfinite(metrics["loss"])
    assert int(metrics["skipped"]) == 1 and int(metrics["skipped_in_a_row"]) == 0 and int(state.step) == 1
    losses = []
    for _ in range(40):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    skipped = int(metrics["skipped"])
    assert 1 < skipped < 30 and float(state.skip_state.loss_scale) == 2.0 ** (40 - skipped)
    assert losses[-1] < losses[0] - 0.3
    # Gradients are those of float32, but for rounding: the scale is out of them again.
    _, exact = training(pair, optimizer=optimizer)[1](begin, batch)
    _, half = step(begin, batch)
    assert float(half["grad_norm"]) == pytest.approx(float(exact["grad_norm"]), rel=1e-2)
    near, loss = float(half["loss"]), float(exact["loss"])
    assert near == pytest.approx(loss, rel=1e-2) and near != loss


def test_scale_grows_after_good_steps():
    skips = SkipState.create(loss_scale=True).replace(since=jnp.asarray(1998))
    ok, scales = jnp.asarray(1.0), []
    for norm in (1.0, 1.0, 1.0, jnp.inf):
        _, skips = skip_step(skips, ok, jnp.asarray(norm), loss_scale=True)
        scales.append(float(skips.loss_scale) / 2**15)
    assert scales == [1, 2, 2, 1] and int(skips.in_a_row) == 0
    skips = skips.replace(loss_scale=jnp.asarray(1.0))
    assert int(skip_step(skips, ok, jnp.asarray(jnp.inf), loss_scale=True)[1].in_a_row) == 1, "no scale helps"


TARGETS = ("attention.query", "attention.out", "mlp.up")


def test_adapters(pair, batch, tmp_path):
    settings = {"rank": 2, "alpha": 8.0, "targets": TARGETS}
    made, step, begin = training(pair, lora=settings, optimizer={"learning_rate": 1e-2})
    equal(made.eval_params(begin), pair.params)
    state = begin
    adapters = flatten_dict(state.params["lora"], sep="/")
    shapes = {path.split("block_0/")[1]: x.shape for path, x in adapters.items() if path.startswith("decoder")}
    assert shapes["self_attention/query/kernel/a"] == (2, 12, 2) and shapes["mlp/up/kernel/b"] == (2, 2, 20)
    assert shapes["self_attention/query/kernel/b"] == (2, 2, 3, 4)
    assert shapes["cross_attention/out/kernel/a"] == (2, 3, 4, 2) and len(adapters) == 2 * (3 + 5)
    for _ in range(3):
        state, metrics = step(state, batch)
    moved = flatten_dict(jax.tree.map(lambda a, b: bool((a != b).any()), state.params, begin.params), sep="/")
    assert {path for path, yes in moved.items() if yes} == {f"lora/{path}" for path in adapters}
    assert float(metrics["loss"]) < float(step(begin, batch)[1]["loss"])

    # Merged by hand, layer by layer; exported, and read again.
    usable, before = (flatten_dict(tree, sep="/") for tree in (made.eval_params(state), pair.params))
    adapters = flatten_dict(state.params["lora"], sep="/")
    for path, value in usable.items():
        if f"{path}/a" not in adapters:
            np.testing.assert_array_equal(value, before[path], err_msg=path)
            continue
        for layer in range(2):
            a, b = (np.asarray(adapters[f"{path}/{leaf}"][layer]) for leaf in "ab")
            product = (a.reshape(-1, 2) @ b.reshape(2, -1)).reshape(value.shape[1:])
            np.testing.assert_allclose(value[layer], before[path][layer] + 4.0 * product, atol=1e-6, err_msg=path)
    save_pretrained(tmp_path, pair.replace(params=made.eval_params(state)))
    back = from_pretrained(tmp_path)
    logits = jax.jit(lambda p: pair.model.apply({"params": p}, **batch).logits)
    np.testing.assert_array_equal(logits(back.params), logits(made.eval_params(state)))


LLAMA = {
    "model_type": "llama",
    "vocab_size": 31,
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
    "tie_word_embeddings": False,
}


@pytest.mark.slow
def test_an_adapter_of_the_head(batch, tmp_path):
    """Of one that is not tied: by hand, its gradient too; exported, and read again."""
    pair = noisy(from_encoder_decoder_configs({**BERT, "num_hidden_layers": 1}, LLAMA, **TOKENS))
    settings = {"rank": 2, "alpha": 8.0, "targets": (r"head\.kernel", "mlp")}
    made, step, begin = training(pair, lora=settings, optimizer={"learning_rate": 1e-2}, loss_chunk=3)
    equal(made.eval_params(begin), pair.params)
    a = begin.params["lora"]["decoder"]["head"]["kernel"]["a"]
    assert a.shape == (12, 2) and 0.2 < np.abs(a).max() < 12**-0.5
    b = jnp.asarray(np.random.default_rng(1).standard_normal((2, 31)), jnp.float32)
    begin.params["lora"]["decoder"]["head"]["kernel"]["b"] = b
    kernel = pair.params["decoder"]["head"]["kernel"]
    usable = made.eval_params(begin)
    np.testing.assert_allclose(usable["decoder"]["head"]["kernel"], kernel + 4.0 * (a @ b).T, atol=1e-5)

    loss = lambda params: pair.model.apply({"params": params}, **batch).loss
    value, by_kernel = jax.jit(jax.value_and_grad(loss))(usable)
    by_kernel = by_kernel["decoder"]["head"]["kernel"]
    found = jax.jit(jax.grad(lambda params: loss(lora.merge_adapters(params, LoraConfig(**settings)))))(begin.params)
    assert not found["decoder"]["head"]["kernel"].any()
    found = found["lora"]["decoder"]["head"]["kernel"]
    np.testing.assert_allclose(found["a"], 4.0 * by_kernel.T @ b.T, atol=1e-5)
    np.testing.assert_allclose(found["b"], 4.0 * a.T @ by_kernel.T, atol=1e-5)

    # The step computes its loss in chunks, and trains adapters alone.
    state, metrics = step(begin, batch)
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-5)
    moved = flatten_dict(jax.tree.map(lambda a, b: bool((a != b).any()), state.params, begin.params), sep="/")
    assert moved["lora/decoder/head/kernel/a"] and moved["lora/decoder/head/kernel/b"]
    assert not moved["decoder/head/kernel"] and float(step(state, batch)[1]["loss"]) < float(metrics["loss"])
    save_pretrained(tmp_path, pair.replace(params=made.eval_params(state)))
    equal(from_pretrained(tmp_path).params, made.eval_params(state))

    # muon leaves the head to adamw, and with it its adapter.
    muon, shapes = OptimizerConfig(name="muon"), jax.eval_shape(lambda: begin.params)
    arrays = assign_groups(muon, pair.config, shapes, 10).arrays
    algorithms = {path: each.algorithm for path, each in arrays.items() if path.startswith("lora/")}
    assert {path for path, name in algorithms.items() if name == "adamw"} == {
        f"lora/decoder/head/kernel/{leaf}" for leaf in "ab"
    }
    arrays = assign_groups(muon, pair.config, pair.params, 10).arrays
    assert arrays["decoder/head/kernel"].algorithm == "adamw" and len(algorithms) > 2


def test_adapters_that_do_not_fit(pair):
    with pytest.raises(ValueError, match=r"'head\S+kernel' matches decoder\.head\.kernel alone, and this head is tied"):
        lora.add_adapters(pair.params, LoraConfig(rank=1, targets=(r"head\.kernel",)), pair.config, seed=0)
    with pytest.raises(ValueError, match=r"lora\.targets 'attention\.qery' matches no kernel's name: .*attention"):
        lora.add_adapters(pair.params, LoraConfig(rank=1, targets=("attention.qery",)), pair.config, seed=0)
    with pytest.raises(ValueError, match=r"groups\[0\] \('\^encoder'\) gets no parameter"):
        training(pair, lora={"rank": 1}, optimizer={"groups": ({"match": "^encoder"}, {"match": ".*"})})
    with pytest.raises(ValueError, match=r"lora\.targets is empty"):
        LoraConfig(rank=1, targets=())


@pytest.mark.slow
def test_run_with_adapters_and_averages_goes_on(tmp_path, monkeypatch):
    """Stopped and continued, with a step that is skipped: the run without a stop; its export is its checkpoint."""
    work, shard = toy.make(tmp_path), loop.shard_batch
    config = toy.config(
        work, lora={"rank": 2}, ema_decay=0.5, num_steps=3, optimizer={"max_skipped": 1, "learning_rate": 0.1},
        evaluation={"metrics": ("exact_match",)},
    )  # fmt: skip
    steps = iter([1, 2, 3, 1, 2, 3])  # in the order in which they are prepared

    def poisoned(batch, *args, **kwargs):
        if next(steps) == 2:
            batch = {**batch, "labels": np.full_like(batch["labels"], -100)}
        return shard(batch, *args, **kwargs)

    monkeypatch.setattr(loop, "shard_batch", poisoned)
    whole = train(config, work / "whole")
    with pytest.raises(TrainingInterrupted):
        train(config, work / "stopped", stop_at=2)
    stopped = train(config, work / "stopped")
    assert toy.records(work / "stopped", "train/skipped") == {1: 0, 2: 1, 3: 1}
    equal(from_pretrained(stopped).params, from_pretrained(whole).params)
    equal(load_trained(work / "whole", step=3).pretrained.params, from_pretrained(whole).params)
