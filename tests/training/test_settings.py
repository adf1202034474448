"""Each setting of a run reaches its step: seen in what the step computes, or in the program that is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from seq2seq_jax.config import LossConfig, TrainConfig, from_mapping
from seq2seq_jax.models.losses import cross_entropy
from seq2seq_jax.training.setup import frozen_new_params, make_training, training_model
from seq2seq_jax.weights.report import Report
from tests.weights.checkpoints import BERT

VOCAB = BERT["vocab_size"]


def config(**values):
    base = {"encoder": "a", "decoder": "b", "data": {"train": "c"}, "num_steps": 10, "dropout": 0.0}
    return from_mapping(TrainConfig, {**base, **values})


def training(pair, **values):
    return make_training(config(**values), pair.model, pair.params, 10)


def traced(pair, batch, **values):
    """The step's jaxpr."""
    made = training(pair, **values)
    return jax.make_jaxpr(made.train_step)(jax.eval_shape(made.init_state, pair.params), batch).jaxpr


def equations(jaxpr):
    """All of a jaxpr and of those inside."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def gradients(pair, batch, **values):
    """(loss, gradients) of the model that the config makes."""
    model, _ = training_model(pair.model, config(**values))
    loss = lambda params: jnp.mean(model.apply({"params": params}, **batch, method="token_losses"))
    return jax.jit(jax.value_and_grad(loss))(pair.params)


@pytest.mark.slow
def test_the_loss(pair, batch):
    """Smoothed, with z-loss, in tiles: what the logits give by hand, and no array of all logits."""
    options = {"label_smoothing": 0.2, "z_loss": 0.3}
    plain = pair.model.apply({"params": pair.params}, **batch)
    expected = float(cross_entropy(plain.logits, batch["labels"], config=LossConfig(**options)))
    assert abs(expected - float(plain.loss)) > 0.1
    tiles = {"loss_chunk": 8, "loss_vocab_chunk": 16}
    made = training(pair, **options, **tiles)
    _, metrics = jax.jit(made.train_step)(made.init_state(pair.params), batch)
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)

    def over_the_vocabulary(**values):
        shapes = (x.aval.shape for e in equations(traced(pair, batch, **values)) for x in e.outvars)
        return [shape for shape in shapes if len(shape) == 3 and shape[-1] == VOCAB]

    assert over_the_vocabulary() and over_the_vocabulary(loss_chunk=8) and not over_the_vocabulary(**tiles)


def test_spikes_are_skipped(pair, batch):
    optimizer = {"skip_above": 2.0, "max_skipped": 1}
    made = training(pair, optimizer=optimizer)
    state = made.init_state(pair.params)
    known = state.skip_state.replace(norms=jnp.int32(50), mean_norm=jnp.float32(1e-3))
    step = jax.jit(made.train_step)
    assert (
        int(step(state, batch)[1]["skipped"]) == 0
        and int(step(state.replace(skip_state=known), batch)[1]["skipped"]) == 1
    )


def test_programs(pair, batch):
    text = lambda **values: str(traced(pair, batch, **values))
    plain = text()
    assert "unroll=1" in plain and "unroll=2" not in plain and "remat" in plain and "bf16" not in plain
    unrolled = text(scan_unroll=2, remat="none")
    assert "unroll=2" in unrolled and "remat" not in unrolled
    assert "impl=fry" in text(dropout=0.1) and "impl=rbg" in text(dropout=0.1, dropout_bits="rbg")
    with pytest.raises(ValueError, match=r"'splash' cannot do lengths \(5, 5\): pad to multiples of 128"):
        text(attention_impl="splash")


def test_attention_dropout_alone(pair):
    model, acts = training_model(pair.model, config(dropout=0.3, attention_dropout=0.0))
    for side in (model.config.encoder, model.config.decoder):
        assert (side.dropout, side.attention_dropout) == (0.3, 0.0)
    assert acts and not training_model(pair.model, config())[1]


@pytest.mark.slow
def test_bfloat16_over_float32(pair, batch):
    """Products are in bfloat16; parameters, moments and gradients' sums stay in float32, and the loss is near."""
    made = training(pair, dtype="bfloat16", optimizer={"learning_rate": 1e-3})
    products = [e for e in equations(traced(pair, batch, dtype="bfloat16")) if e.primitive.name == "dot_general"]
    met = [tuple(x.aval.dtype.name for x in e.invars) for e in products]
    assert set(met) == {("bfloat16", "bfloat16")} and len(met) > 30, "of the backward pass too"
    state, metrics = jax.jit(made.train_step)(made.init_state(pair.params), batch)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))
    exact = float(pair.model.apply({"params": pair.params}, **batch).loss)
    assert float(metrics["loss"]) == pytest.approx(exact, rel=1e-2) and float(metrics["loss"]) != exact
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), state.params, pair.params)
    assert max(jax.tree.leaves(moved)) == pytest.approx(1e-3, rel=0.05), "less than bfloat16 would hold of it"


@pytest.mark.parametrize("values", [{"scan_unroll": 2, "remat": "none"}, {"remat": "elementwise"}])
def test_the_way_leaves_gradients_alone(pair, batch, values, plain_gradients):
    """Unrolled layers, and what a run computes anew unless told otherwise: the loss and gradients of a plain scan."""
    for a, b in zip(jax.tree.leaves(gradients(pair, batch, **values)), jax.tree.leaves(plain_gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max() + 1e-9)


@pytest.fixture(scope="module")
def plain_gradients(pair, batch):
    return gradients(pair, batch, remat="none")


def test_names_of_policies():
    with pytest.raises(ValueError, match="remat 'dot' is unknown: did you mean 'dots'"):
        config(remat="dot")
    with pytest.raises(ValueError, match="loss_vocab_chunk is 7, and loss_chunk is not given"):
        config(loss_vocab_chunk=7)


def test_lengths_that_kernels_take():
    assert config().batch.length_multiple is None
    assert config(attention_impl="splash").batch.length_multiple == 128
    assert config(attention_impl="cudnn").batch.length_multiple == 8
    with pytest.raises(ValueError, match="length_multiple is 64, and attention_impl 'splash' takes multiples of 128"):
        config(attention_impl="splash", batch={"length_multiple": 64})
    with pytest.raises(
        ValueError, match=r"pack_target_length is 64, and batch\.length_multiple 128 does not divide it"
    ):
        config(attention_impl="splash", batch={"packing": True, "pack_source_length": 256, "pack_target_length": 64})


def test_new_parameters_that_are_frozen_are_named(pair):
    """Here all but the cross-attention is taken to be a checkpoint's own, which may be frozen."""
    cross = [entry for entry in pair.report.of("initialised") if "/cross_attention/" in entry.name]
    assert len(cross) == 16
    warm = pair.replace(report=Report(entries=cross))
    groups = lambda match: (
        training(pair, optimizer={"groups": ({"match": match}, {"match": ".*", "freeze": True})}).groups
    )
    assert frozen_new_params(warm, groups("cross_attention")) == []
    named = frozen_new_params(warm, groups(r"encoder\."))
    assert sorted(named) == sorted(entry.name for entry in cross)
    assert "decoder/layers/layers_1/cross_attention/out/kernel" in named
