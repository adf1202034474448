"""Run by test_mesh.py in a process of its own, with 8 virtual devices: prints one line per check that held."""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

import seq2seq_jax as s2s
from seq2seq_jax.config import DROPOUT_BITS
from seq2seq_jax.models.layers import Dropout
from seq2seq_jax.parallel.data_parallel import AXIS, pmap_step, replicate, split, unreplicate
from seq2seq_jax.parallel.mesh import make_mesh, shard_batch
from seq2seq_jax.parallel.rules import constrain, partition_spec
from seq2seq_jax.training.step import TrainState, loss_and_grads, make_train_step

WORK = Path(sys.argv[1])
ENCODER = {
    "model_type": "bert",
    "vocab_size": 37,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
}
DECODER = {**ENCODER, "hidden_size": 24, "vocab_size": 41, "num_hidden_layers": 2, "num_attention_heads": 6}
TOKENS = {"decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": 2}


def held(name):
    print("held:", name, flush=True)


def noisy(tree, seed=1, scale=0.3):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(x + scale * rng.standard_normal(x.shape), x.dtype), tree)


def true_rows(path, array, like):
    """Without the padding of the vocabulary."""
    return np.asarray(array)[: like.shape[0]] if "token/embedding" in path or "head/" in path else np.asarray(array)


pair = s2s.from_encoder_decoder_configs(ENCODER, DECODER, **TOKENS)
pair = pair.replace(params=noisy(pair.params))
s2s.save_pretrained(WORK / "pair", pair)
rng = np.random.default_rng(0)
batch = {
    "input_ids": rng.integers(3, 37, (8, 10)).astype(np.int32),
    "attention_mask": (np.arange(10) < rng.integers(4, 11, (8, 1))).astype(np.int32),
    "labels": rng.integers(3, 41, (8, 6)).astype(np.int32),
}
batch["labels"][:5, 3:] = -100

one = s2s.from_pretrained(WORK / "pair")
loss_1, grads_1, _ = jax.jit(lambda p, b: loss_and_grads(one.model, p, b))(one.params, batch)
logits_1 = jax.jit(lambda p, b: one.model.apply({"params": p}, **b).logits)(one.params, batch)
settings = {"num_beams": 3, "max_length": 12}
beams_1 = one.generate(batch["input_ids"], batch["attention_mask"], **settings)
greedy_1 = one.generate(batch["input_ids"], batch["attention_mask"], max_length=12)

mesh = make_mesh(data=2, fsdp=2, tensor=2)
many = s2s.from_pretrained(WORK / "pair", mesh=mesh)
table = many.params["encoder"]["embeddings"]["token"]["embedding"]
assert many.config.encoder.padded_vocab_size == 38 and table.shape == (38, 16)
assert {s.data.shape for s in table.addressable_shards} == {(19, 8)}
kernel = many.params["decoder"]["layers"]["stacked"]["block_0"]["cross_attention"]["query"]["kernel"]
assert kernel.sharding.spec == P(None, "fsdp", "tensor", None), kernel.sharding
assert {s.data.shape for s in kernel.addressable_shards} == {(2, 12, 3, 4)}
held("each device holds its part, the vocabulary padded")

with jax.set_mesh(mesh):
    sharded = shard_batch(batch, mesh)
    step = jax.jit(lambda p, b: loss_and_grads(many.model, p, b))
    loss_8, grads_8, _ = step(many.params, sharded)
    forward = jax.jit(lambda p, b: many.model.apply({"params": p}, **b).logits)
    logits_8 = forward(many.params, sharded)
    beams_8 = many.generate(batch["input_ids"], batch["attention_mask"], **settings)
    greedy_8 = many.generate(batch["input_ids"], batch["attention_mask"], max_length=12)
    text = step.lower(many.params, sharded).compile()
np.testing.assert_allclose(np.asarray(logits_8), np.asarray(logits_1), atol=1e-5 * float(np.abs(logits_1).max()))
np.testing.assert_allclose(float(loss_8), float(loss_1), rtol=1e-6)
held("forward and loss")
flat_1, flat_8 = flatten_dict(grads_1, sep="/"), flatten_dict(grads_8, sep="/")
for path, g in flat_1.items():
    if not path.endswith("key/bias"):
        ours = true_rows(path, flat_8[path], g)
        diff = np.abs(ours - g).max() / np.abs(g).max()
        assert diff <= 5e-5, (path, diff)  # sums in another order
    assert flat_8[path].sharding.is_equivalent_to(flatten_dict(many.params, sep="/")[path].sharding, g.ndim), path
held("gradient, sharded as its parameter")
np.testing.assert_array_equal(np.asarray(beams_8.sequences), np.asarray(beams_1.sequences))
np.testing.assert_allclose(np.asarray(beams_8.sequences_scores), np.asarray(beams_1.sequences_scores), rtol=1e-5)
np.testing.assert_array_equal(np.asarray(greedy_8.sequences), np.asarray(greedy_1.sequences))
held("greedy and beam search")

# The loss in chunks: 8 of the 48 target tokens, 2 on each part of the batch.
loss_options = {"label_smoothing": 0.1, "z_loss": 1e-2}
step = lambda model, **more: jax.jit(lambda p, b: loss_and_grads(model, p, b, **loss_options, **more)[:2])
loss_1, grads_1 = step(one.model)(one.params, batch)
with jax.set_mesh(mesh):
    chunked = step(many.model, loss_chunk=8).lower(many.params, sharded).compile()
    loss_8, grads_8 = chunked(many.params, sharded)
np.testing.assert_allclose(float(loss_8), float(loss_1), rtol=1e-6)
for path, g in flatten_dict(grads_1, sep="/").items():
    if not path.endswith("key/bias"):
        ours = true_rows(path, flatten_dict(grads_8, sep="/")[path], g)
        assert np.abs(ours - g).max() <= 1e-4 * np.abs(g).max(), path
hlo = chunked.as_text()
gathers = [line.split(" all-gather(")[0] for line in hlo.splitlines() if " all-gather(" in line]
assert gathers and not [line for line in gathers if re.search(r"\b42\b", line)], "the vocabulary is gathered"
assert "f32[1,2,21]" in hlo and "f32[2,6,21]" not in hlo, "a tile is not 2 tokens by half of the 42 rows"
held("chunked loss")


def dropped(x, key):
    return Dropout(0.3).apply({}, x, deterministic=False, rngs={"dropout": key})


for bits in DROPOUT_BITS.values():
    inputs = jnp.ones((8, 7, 16)), jax.random.key(0, impl=bits)
    dropped_1 = np.asarray(jax.jit(dropped)(*inputs))
    with jax.set_mesh(mesh):
        split_up = jax.jit(lambda x, key: dropped(constrain(x, ("batch", "length", "mlp")), key))(*inputs)
    assert {s.data.shape for s in split_up.addressable_shards} == {(2, 7, 8)}
    np.testing.assert_array_equal(np.asarray(split_up), dropped_1)
held("dropout by any generator")

# Activations are split too: the encoder's MLP works on a quarter of the batch and half of its width.
assert partition_spec(("batch", "length", "mlp"), mesh) == P(("data", "fsdp"), None, "tensor")
assert re.search(r"f32\[2,10,12\]", text.as_text()), "no MLP activation of [8/4, 10, 24/2] in the compiled step"
assert not re.search(r"f32\[8,10,24\]", text.as_text()), "an MLP activation is whole in the compiled step"
held("activations are split as asked")

tx = optax.adamw(1e-2, eps=1e-3)
schedule = optax.constant_schedule(1e-2)


def two_steps(step, state, batch):
    losses = []
    for _ in range(2):
        state, metrics = jax.block_until_ready(step(state, batch))
        losses.append(float(np.asarray(metrics["loss"]).ravel()[0]))
    return state, losses


jitted = jax.jit(make_train_step(one.model, tx, schedule, seed=0, dropout=False))
state_1, losses_1 = two_steps(jitted, TrainState.create(one.params, tx), batch)
mapped = pmap_step(make_train_step(one.model, tx, schedule, seed=0, dropout=False, axis_name=AXIS))
state_p, losses_p = two_steps(mapped, replicate(TrainState.create(one.params, tx)), split(batch))
np.testing.assert_allclose(losses_p, losses_1, rtol=1e-5)
for path, value in flatten_dict(state_1.params, sep="/").items():
    other = np.asarray(flatten_dict(unreplicate(state_p).params, sep="/")[path])
    assert np.abs(other - value).max() <= 1e-4 * np.abs(value).max(), path
held("pmap")

with jax.set_mesh(mesh):
    sharded_step = jax.jit(make_train_step(many.model, tx, schedule, seed=0, dropout=False))
    state_8, losses_8 = two_steps(sharded_step, TrainState.create(many.params, tx), sharded)
np.testing.assert_allclose(losses_8, losses_1, rtol=1e-5)
kernel = flatten_dict(state_8.opt_state[0].mu, sep="/")["encoder/layers/stacked/block_0/mlp/up/kernel"]
assert kernel.sharding.spec == P(None, "fsdp", "tensor"), kernel.sharding
held("training step, the optimizer's state sharded")

s2s.save_orbax(WORK / "orbax", many)
back = s2s.from_pretrained(WORK / "orbax")
other_mesh = s2s.from_pretrained(WORK / "orbax", mesh=make_mesh(data=1, fsdp=4, tensor=2))
for path, value in flatten_dict(one.params, sep="/").items():
    np.testing.assert_array_equal(np.asarray(flatten_dict(back.params, sep="/")[path]), np.asarray(value))
    moved = flatten_dict(other_mesh.params, sep="/")[path]
    np.testing.assert_array_equal(true_rows(path, moved, value), np.asarray(value))
s2s.save_pretrained(WORK / "again", back)
assert (WORK / "again" / "model.safetensors").read_bytes() == (WORK / "pair" / "model.safetensors").read_bytes()
held("Orbax: written on one mesh, read on none and on another, and back to the same safetensors")

resized = s2s.resize_token_embeddings(many, 45, side="target")
table = resized.params["decoder"]["embeddings"]["token"]["embedding"]
assert table.shape == (46, 24) and {s.data.shape for s in table.addressable_shards} == {(23, 12)}
np.testing.assert_array_equal(np.asarray(table)[:41], one.params["decoder"]["embeddings"]["token"]["embedding"])
assert (np.asarray(table)[45:] == 0).all()
held("a resized vocabulary stays split")

try:
    s2s.from_pretrained(WORK / "pair", mesh=make_mesh(tensor=8))
    raise AssertionError("6 heads over 8 devices were accepted")
except ValueError as error:
    assert "heads" in str(error) and "among 1, 2, 3, 6" in str(error), error
try:
    shard_batch({"input_ids": np.zeros((6, 3), np.int32)}, mesh)
    raise AssertionError("a batch of 6 over 4 parts was accepted")
except ValueError as error:
    assert "multiple of 4" in str(error), error
try:
    make_mesh(data=3)
    raise AssertionError("3 of 8 devices were accepted")
except ValueError as error:
    assert "8" in str(error), error
held("a mesh that does not divide is refused")
