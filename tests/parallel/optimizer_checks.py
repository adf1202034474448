"""Run by test_mesh.py in a process of its own, with 8 virtual devices: prints one line per check that held.

Groups of layers, each algorithm, adapters and averages: the steps on a mesh are those of one device, all is split as
its parameter, and a checkpoint goes on upon another mesh.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding

import seq2seq_jax as s2s
from seq2seq_jax.config import TrainConfig, from_mapping
from seq2seq_jax.parallel.mesh import make_mesh, shard_batch
from seq2seq_jax.training import checkpoints
from seq2seq_jax.training.setup import make_training

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
GROUPS = (
    {"match": r"encoder\.layers\.0\.", "freeze": True},
    {"match": "encoder", "learning_rate_scale": 0.3, "unfreeze_step": 1},
    {"match": ".*"},
)
rng = np.random.default_rng(0)
batch = {
    "input_ids": rng.integers(3, 37, (8, 10)).astype(np.int32),
    "attention_mask": np.ones((8, 10), np.int32),
    "labels": rng.integers(3, 41, (8, 6)).astype(np.int32),
}
s2s.save_pretrained(WORK / "pair", s2s.from_encoder_decoder_configs(ENCODER, DECODER, **TOKENS))


def begin(mesh, settings):
    values = {"encoder": "a", "decoder": "b", "data": {"train": "c"}, "num_steps": 10, "dropout": 0.0}
    config = from_mapping(TrainConfig, {**values, "ema_decay": 0.5, **settings})
    pair = s2s.from_pretrained(WORK / "pair", mesh=mesh)
    made = make_training(config, pair.model, pair.params, 10)
    return made, made.begin(pair.params)


def steps(made, state, data, count):
    step, losses = jax.jit(made.step, donate_argnums=0), []
    for _ in range(count):
        state, metrics = jax.block_until_ready(step(state, data))
        losses.append(float(metrics["loss"]))
    return state, losses


def check(name, settings):
    made, state = begin(None, settings)
    state, losses = steps(made, state, batch, 3)
    expected = flatten_dict(made.usable(state), sep="/")
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        made, first = begin(mesh, settings)
        assert all(isinstance(x.sharding, NamedSharding) for x in jax.tree.leaves(first)), "on the mesh"
        places = {path: x.sharding for path, x in flatten_dict(first.params, sep="/").items()}
        shapes = {path: x.shape for path, x in flatten_dict(first.params, sep="/").items()}
        arrays, kept = flatten_dict(first.opt_state.arrays, sep="/"), 0
        for path, held in arrays.items():
            for x in jax.tree.leaves(held):
                if x.shape == shapes[path]:
                    kept += 1
                    assert x.sharding.is_equivalent_to(places[path], x.ndim), path
        assert kept > 5, kept
        for path, x in flatten_dict(first.ema, sep="/").items():
            assert x.sharding.is_equivalent_to(places[path], x.ndim), path
        state, begun = steps(made, first, shard_batch(batch, mesh), 2)
        store = checkpoints.open_store(WORK / name, "loss")
        checkpoints.save(store, 2, state, made.usable(state), "data", None, whole=made.apart)
        store.close()
    other = make_mesh(data=1, fsdp=4, tensor=2)
    with jax.set_mesh(other):
        (made, first), store = begin(other, settings), checkpoints.open_store(WORK / name, "loss")
        state = checkpoints.restore(store, 2, first, "data", whole=made.apart)
        store.close()
        state, rest = steps(made, state, shard_batch(batch, other), 1)
        usable = flatten_dict(made.usable(state), sep="/")
    np.testing.assert_allclose([*begun, *rest], losses, rtol=2e-5)
    difference = 0.0
    for path, value in expected.items():
        ours = np.asarray(usable[path])[: value.shape[0]]
        difference = max(difference, float(np.abs(ours - value).max()))
    assert difference < 2e-4, difference
    print("held:", name, flush=True)


rates = {"learning_rate": 1e-3, "eps": 1e-3}
for name in ("adamw", "muon", "adafactor"):
    check(name, {"optimizer": {**rates, "name": name, "groups": GROUPS}})
check("lora", {"optimizer": rates, "lora": {"rank": 2, "targets": ["attention", "mlp"]}})
