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
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
}
DECODER = {**ENCODER, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6}
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


def save(name, encoder=37, decoder=41, **changes):
    """A pair far from the small first weights, whose gradients are too small to move all arrays.

    Args:
      encoder, decoder: sizes of the vocabularies. changes: of the decoder's config.
    """
    sides = {**ENCODER, "vocab_size": encoder}, {**DECODER, "vocab_size": decoder, **changes}
    pair, rng = s2s.from_encoder_decoder_configs(*sides, **TOKENS), np.random.default_rng(1)
    noisy = lambda x: (x + 0.3 * rng.standard_normal(x.shape)).astype(x.dtype)
    s2s.save_pretrained(WORK / name, pair.replace(params=jax.tree.map(noisy, pair.params)))


def begin(name, mesh, settings):
    values = {"encoder": "a", "decoder": "b", "data": {"train": "c"}, "num_steps": 10, "dropout": 0.0}
    config = from_mapping(TrainConfig, {**values, "ema_decay": 0.5, **settings})
    pair = s2s.from_pretrained(WORK / name, mesh=mesh)
    made = make_training(config, pair.model, pair.params, 10)
    return made, made.init_state(pair.params)


def steps(made, state, data, count):
    step, losses = jax.jit(made.train_step, donate_argnums=0), []
    for _ in range(count):
        state, metrics = jax.block_until_ready(step(state, data))
        losses.append(float(metrics["loss"]))
    return state, losses


def movements(made, start, expected):
    """{path: the largest movement} of trained arrays. Without biases of keys, whose gradient is zero but for rounding,
    of which some algorithms make whole steps."""
    frozen = {} if made.model_frozen is None else flatten_dict(made.model_frozen, sep="/")
    trained = [path for path in expected if not frozen.get(path, False) and not path.endswith("key/bias")]
    moved = {path: float(np.abs(expected[path] - start[path]).max()) for path in trained}
    assert len(moved) > 10 and min(moved.values()) > 1e-4, moved
    return moved


def check(name, settings, pair="odd"):
    made, state = begin(pair, None, settings)
    start = {path: np.array(x) for path, x in flatten_dict(made.eval_params(state), sep="/").items()}
    state, losses = steps(made, state, batch, 3)
    expected = flatten_dict(made.eval_params(state), sep="/")
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        made, first = begin(pair, mesh, settings)
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
        eval_params = made.eval_params(state) if made.has_eval_params else None
        checkpoints.save(store, 2, state, eval_params, "data", None)
        store.close()
    other = make_mesh(data=1, fsdp=4, tensor=2)
    with jax.set_mesh(other):
        (made, first), store = begin(pair, other, settings), checkpoints.open_store(WORK / name, "loss")
        state = checkpoints.restore(store, 2, first, "data", has_eval_params=made.has_eval_params)
        store.close()
        state, rest = steps(made, state, shard_batch(batch, other), 1)
        usable = flatten_dict(made.eval_params(state), sep="/")
    np.testing.assert_allclose([*begun, *rest], losses, rtol=2e-5)
    moved = movements(made, start, expected)
    for path, value in expected.items():
        if not path.endswith("key/bias"):
            difference = float(np.abs(np.asarray(usable[path])[: value.shape[0]] - value).max())
            assert difference <= 1e-3 * moved.get(path, 0.0), (path, difference, moved.get(path))
    print("held:", name, flush=True)


save("odd")
save("even", encoder=38, decoder=42)
save("untied", tie_word_embeddings=False)
rates = {"learning_rate": 1e-2, "eps": 1e-3}
for name in ("adamw", "muon", "lion"):
    check(name, {"optimizer": {**rates, "name": name, "groups": GROUPS}})
# Its rates go by an array's root mean square, in which the rows count that a mesh adds to an odd vocabulary.
check("adafactor", {"optimizer": {**rates, "name": "adafactor", "groups": GROUPS}}, pair="even")
check(
    "lora", {"optimizer": rates, "lora": {"rank": 2, "targets": ["attention", "mlp", r"head\.kernel"]}}, pair="untied"
)
