"""Five AdamW steps of one small pair on any mesh: what the check scripts here compare. One program a mesh."""

import contextlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import seq2seq_jax as s2s
from seq2seq_jax.parallel.axes import partition_spec
from seq2seq_jax.parallel.mesh import make_mesh, shard_batch
from seq2seq_jax.training.state import TrainState
from seq2seq_jax.training.step import StepConfig, make_train_step
from seq2seq_jax.weights.loading import leaves

# No two widths are the same, so that the shapes in a program tell what is what.
ENCODER = {
    "model_type": "bert",
    "vocab_size": 37,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 24,
}
DECODER = {**ENCODER, "hidden_size": 24, "vocab_size": 61, "num_hidden_layers": 1, "intermediate_size": 56}
TOKENS = {"decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": 2}
ROWS, SOURCE, TARGET = 16, 10, 6
SCHEDULE = optax.constant_schedule(1e-2)


def make_pair():
    pair = s2s.from_encoder_decoder_configs(ENCODER, DECODER, **TOKENS)
    rng = np.random.default_rng(1)
    noisy = lambda x: jnp.asarray(x + 0.3 * rng.standard_normal(x.shape), x.dtype)
    return pair.replace(params=jax.tree.map(noisy, pair.params))


def make_batch():
    """Uneven: rows of other lengths, and most targets in the second half of the rows."""
    rng = np.random.default_rng(0)
    batch = {
        "input_ids": rng.integers(3, 37, (ROWS, SOURCE)).astype(np.int32),
        "attention_mask": (np.arange(SOURCE) < rng.integers(4, SOURCE + 1, (ROWS, 1))).astype(np.int32),
        "labels": rng.integers(3, 61, (ROWS, TARGET)).astype(np.int32),
    }
    batch["labels"][:9, 2:] = -100
    return batch


def _seen(gradient, state, params=None):
    return gradient, gradient


# Its state is the last gradient, so that the step's own program shows it.
TX = optax.with_extra_args_support(
    optax.chain(
        optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), _seen),
        optax.adamw(1e-2, eps=1e-3),
    )
)


class Taken(NamedTuple):
    """losses: of the steps. gradients: of the first, by path. state: the last. compiled: the step's program."""

    losses: list[float]
    gradients: dict[str, np.ndarray]
    state: TrainState
    compiled: jax.stages.Compiled


def flat(tree):
    return flatten_dict(tree, sep="/")


def true_rows(path, array, like):
    """Without the padding of the vocabulary."""
    return np.asarray(array)[: like.shape[0]] if "token/embedding" in path or "head/" in path else np.asarray(array)


def take(pair, mesh=None, *, accumulation=1, count=5):
    """`count` steps on the same batch. A program for given places refuses arrays elsewhere, so that what it gives must
    lie where what it took lay."""
    step = make_train_step(pair.model, TX, SCHEDULE, StepConfig(dropout=False, accumulation=accumulation))
    state, batch = TrainState.create(pair.params, TX), make_batch()
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        batch = batch if mesh is None else shard_batch(batch, mesh)
        shardings = (None, None) if mesh is None else (state.shardings(), None)
        compiled = jax.jit(step, out_shardings=shardings).lower(state, batch).compile()
        losses, gradients = [], None
        for _ in range(count):
            state, metrics = jax.block_until_ready(compiled(state, batch))
            losses.append(float(metrics["loss"]))
            gradients = gradients or {path: np.asarray(g) for path, g in flat(state.opt_state[0]).items()}
    return Taken(losses, gradients, state, compiled)


def same(taken, reference):
    """The same losses and gradients, but for the order of sums."""
    assert reference.losses[-1] < reference.losses[0] - 0.1, "nothing was learnt"
    np.testing.assert_allclose(taken.losses, reference.losses, rtol=1e-5)
    for path, expected in reference.gradients.items():
        if not path.endswith("key/bias"):  # zero but for rounding
            found = true_rows(path, taken.gradients[path], expected)
            difference = np.abs(found - expected).max() / np.abs(expected).max()
            assert difference <= 1e-4, (path, difference)  # the ladder's tolerance


def placed_by_the_table(pair, mesh, taken):
    """Parameters and moments go in and come out of the program as the table says, and the gradient; the rest whole."""
    (before, _), _ = taken.compiled.input_shardings
    after = taken.compiled.output_shardings[0]
    for found in (before, after):
        adam = found.opt_state[1][0]
        trees = {"params": found.params, "mean": adam.mu, "square": adam.nu, "gradient": after.opt_state[0]}
        for path, leaf in leaves(pair.model).items():
            expected = NamedSharding(mesh, partition_spec(leaf.axes, mesh))
            for name, tree in trees.items():
                there = flat(tree)[path]
                assert there.is_equivalent_to(expected, len(leaf.shape)), (name, path, there, expected)
        for there in (found.step, adam.count):
            assert there.is_equivalent_to(NamedSharding(mesh, P()), 0), there


def on_mesh(directory, **sizes):
    """The saved pair on a mesh of the first devices."""
    count = int(np.prod(list(sizes.values())))
    mesh = make_mesh(**sizes, devices=jax.devices()[:count])
    return s2s.from_pretrained(directory, mesh=mesh), mesh
