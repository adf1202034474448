"""Run by test_mesh.py in a process of its own, with 8 virtual devices: prints one line per check that held."""

import dataclasses
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

import seq2seq_jax as s2s
from seq2seq_jax.config import DROPOUT_BITS, LossConfig
from seq2seq_jax.models import kernels
from seq2seq_jax.models.attention import attend
from seq2seq_jax.models.layers import Dropout
from seq2seq_jax.parallel.axes import constrain
from seq2seq_jax.parallel.data_parallel import AXIS, PmapStep, unreplicate
from seq2seq_jax.parallel.mesh import make_mesh, shard_batch
from seq2seq_jax.training import checkpoints
from seq2seq_jax.training.state import TrainState
from seq2seq_jax.training.step import StepConfig, loss_and_grads, make_train_step
from tests.parallel import steps
from tests.parallel.steps import flat, true_rows

WORK = Path(sys.argv[1])


def held(name):
    print("held:", name, flush=True)


s2s.save_pretrained(WORK / "pair", steps.make_pair())
one = s2s.from_pretrained(WORK / "pair")
many, mesh = steps.on_mesh(WORK / "pair", data=2, fsdp=2, tensor=2)
table = many.params["encoder"]["embeddings"]["token"]["embedding"]
assert many.config.encoder.padded_vocab_size == 38 and table.shape == (38, 16)
assert {s.data.shape for s in table.addressable_shards} == {(19, 8)}
kernel = many.params["encoder"]["layers"]["stacked"]["block_0"]["self_attention"]["query"]["kernel"]
assert kernel.sharding.spec == P(None, "fsdp", "tensor", None), kernel.sharding
assert {s.data.shape for s in kernel.addressable_shards} == {(2, 8, 2, 4)}
held("each device holds its part, the vocabulary padded")

one_step, many_step = steps.take(one), steps.take(many, mesh)
steps.same(many_step, one_step)
held("losses and gradients")
steps.placed_by_the_table(many, mesh, many_step)
mean = flat(many_step.state.opt_state[1][0].mu)["encoder/layers/stacked/block_0/mlp/up/kernel"]
assert {s.data.shape for s in mean.addressable_shards} == {(2, 8, 20)}, mean.sharding
held("parameters and optimizer state go in and come out split")

# Activations: a quarter of the rows, and half of the heads, of the MLP's width and of the vocabulary.
text = many_step.compiled.as_text()
rows, whole = steps.ROWS // 4, steps.ROWS
for name, split, wide in (
    ("MLP", (steps.SOURCE, 20), (steps.SOURCE, 40)),
    ("attention", (2, steps.SOURCE, steps.SOURCE), (4, steps.SOURCE, steps.SOURCE)),
    ("decoder's MLP", (steps.TARGET, 28), (steps.TARGET, 56)),
    ("cross-attention", (2, steps.TARGET, steps.SOURCE), (4, steps.TARGET, steps.SOURCE)),
    ("logits", (steps.TARGET, 31), (steps.TARGET, 62)),
):
    shape = lambda rows, rest: f"f32[{','.join(map(str, (rows, *rest)))}]"
    assert shape(rows, split) in text, f"no {name} activation {shape(rows, split)} in the compiled step"
    for other in (shape(whole, wide), shape(whole, split), shape(rows, wide)):
        assert other not in text, f"an {name} activation {other} in the compiled step"
assert re.search(r"f32\[4,10,16\]", text) and not re.search(r"f32\[16,10,16\]", text), "states are not split by rows"
held("activations are split as asked")

# The loss in chunks: 16 of the 96 target tokens, 4 on each part of the batch.
batch, loss = steps.make_batch(), LossConfig(label_smoothing=0.1, z_loss=1e-2)
step = lambda model, loss: jax.jit(lambda p, b: loss_and_grads(model, p, b, config=StepConfig(loss=loss))[:2])
loss_1, grads_1 = step(one.model, loss)(one.params, batch)
with jax.set_mesh(mesh):
    sharded = shard_batch(batch, mesh)
    chunked = step(many.model, dataclasses.replace(loss, chunk=16)).lower(many.params, sharded).compile()
    loss_8, grads_8 = chunked(many.params, sharded)
np.testing.assert_allclose(float(loss_8), float(loss_1), rtol=1e-6)
for path, g in flat(grads_1).items():
    if not path.endswith("key/bias"):
        assert np.abs(true_rows(path, flat(grads_8)[path], g) - g).max() <= 1e-4 * np.abs(g).max(), path
hlo = chunked.as_text()
gathers = [line.split(" all-gather(")[0] for line in hlo.splitlines() if " all-gather(" in line]
assert gathers and not [line for line in gathers if re.search(r"\[[\d,]*\b62\b", line)], "the vocabulary is gathered"
assert "f32[1,4,31]" in hlo and "f32[4,6,31]" not in hlo, "a tile is not 4 tokens by half of the 62 rows"
held("chunked loss")


# Splash attention, interpreted: each device runs the kernel on its rows and heads.
kernels.INTERPRET = True
draw = lambda n, heads: jax.random.normal(jax.random.key(n), (8, heads, 128, 8))
real = np.arange(128) < np.arange(72, 136, 8)[:, None]
numbers = kernels.segment_ids((8, 128), (8, 128), real)
sees = jnp.asarray(real)[:, None, None, :] & jnp.tril(jnp.ones((128, 128), bool))
options = {"scale": 0.3, "causal": True, "window": None, "softcap": None}
for kv_heads, heads in ((1, 4), (2, 2)):  # keys of one head for all stay whole, and so do the heads
    q, k, v = draw(0, 4), draw(1, kv_heads), draw(2, kv_heads)
    with jax.set_mesh(mesh):
        found = jax.jit(lambda *qkv: kernels.fused_attention("splash", *qkv, numbers, **options))(q, k, v)
    assert {s.data.shape for s in found.addressable_shards} == {(2, heads, 128, 8)}, found.sharding
    np.testing.assert_allclose(found, attend(q, k, v, sees, 0.3)[0], atol=2e-6)
held("splash attention")


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

settings = {"num_beams": 3, "max_length": 12}
beams_1 = one.generate(batch["input_ids"][:8], batch["attention_mask"][:8], **settings)
with jax.set_mesh(mesh):
    beams_8 = many.generate(batch["input_ids"][:8], batch["attention_mask"][:8], **settings)
np.testing.assert_array_equal(np.asarray(beams_8.sequences), np.asarray(beams_1.sequences))
np.testing.assert_allclose(np.asarray(beams_8.sequences_scores), np.asarray(beams_1.sequences_scores), rtol=1e-5)
held("beam search")

step = make_train_step(one.model, steps.TX, steps.SCHEDULE, StepConfig(dropout=False, axis_name=AXIS))
step = PmapStep(step)
state, losses = step.replicate(TrainState.create(one.params, steps.TX)), []
for _ in range(5):
    state, metrics = jax.block_until_ready(step(state, batch))
    losses.append(float(metrics["loss"]))
np.testing.assert_allclose(losses, one_step.losses, rtol=1e-5)
for path, value in flat(one_step.state.params).items():
    if not path.endswith("key/bias"):
        other = np.asarray(flat(unreplicate(state).params)[path])
        assert np.abs(other - value).max() <= 1e-4 * np.abs(value).max(), path
held("pmap")

store = checkpoints.open_store(WORK / "run", "loss")
checkpoints.save(store, 5, many_step.state, None, "data", {"loss": 1.0})
for sizes in ({"replica": 2, "data": 1, "fsdp": 4}, {"tensor": 4}, {"data": 1}):
    pair, other_mesh = steps.on_mesh(WORK / "pair", **sizes)
    like = TrainState.create(pair.params, steps.TX)
    back = checkpoints.restore(store, 5, like, "data", has_eval_params=False)
    assert int(back.step) == int(back.opt_state[1][0].count) == 5
    for path, shape in jax.tree_util.tree_leaves_with_path(like):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found, written = (dict(jax.tree_util.tree_leaves_with_path(s))[path] for s in (back, many_step.state))
        assert found.sharding.is_equivalent_to(shape.sharding, found.ndim), name
        part = slice(min(len(found), len(written))) if found.ndim else ...  # vocabularies are padded otherwise
        np.testing.assert_array_equal(np.asarray(found)[part], np.asarray(written)[part], err_msg=name)
store.close()
held("a checkpoint comes back bit for bit on other meshes, and on one device")

s2s.save_orbax(WORK / "orbax", many)
back = s2s.from_pretrained(WORK / "orbax")
moved = s2s.from_pretrained(WORK / "orbax", mesh=make_mesh(data=1, fsdp=4, tensor=2))
for path, value in flat(one.params).items():
    np.testing.assert_array_equal(np.asarray(flat(back.params)[path]), np.asarray(value))
    np.testing.assert_array_equal(true_rows(path, flat(moved.params)[path], value), np.asarray(value))
s2s.save_pretrained(WORK / "again", back)
assert (WORK / "again" / "model.safetensors").read_bytes() == (WORK / "pair" / "model.safetensors").read_bytes()
held("Orbax: written on one mesh, read on none and on another, and back to the same safetensors")

resized = s2s.resize_token_embeddings(many, 65, side="target")
table = resized.params["decoder"]["embeddings"]["token"]["embedding"]
assert table.shape == (66, 24) and {s.data.shape for s in table.addressable_shards} == {(33, 12)}
np.testing.assert_array_equal(np.asarray(table)[:61], one.params["decoder"]["embeddings"]["token"]["embedding"])
assert (np.asarray(table)[65:] == 0).all()
held("a resized vocabulary stays split")

# What belongs to no parameter, or has another shape (Adafactor's rows and columns), is on all devices.
state = TrainState.create(many.params, optax.adafactor(1e-3, min_dim_size_to_factor=8))
factored = optax.tree.get(state.opt_state, "v_row")
assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(factored))
assert sum(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(state)) == len(jax.tree.leaves(state))
held("an optimizer with other shapes")

try:
    s2s.from_pretrained(WORK / "pair", mesh=make_mesh(tensor=8))
    raise AssertionError("4 heads over 8 devices were accepted")
except ValueError as error:
    assert "heads" in str(error) and "among 1, 2, 4" in str(error), error
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
