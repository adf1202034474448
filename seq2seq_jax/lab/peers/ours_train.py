"""seq2seq_jax's training step, as a run makes it."""

import harness
import jax
import jax.numpy as jnp
import numpy as np
from ours_decode import peak, rates, reset

import seq2seq_jax as s2s
from seq2seq_jax.config import OptimizerConfig
from seq2seq_jax.parallel.mesh import make_mesh, shard_batch
from seq2seq_jax.training.optimizers import learning_rate, optimizer
from seq2seq_jax.training.state import TrainState
from seq2seq_jax.training.step import make_train_step


def load(setting):
    if jax.default_backend() != setting["device"]:
        raise RuntimeError(f"jax runs on {jax.default_backend()}, not {setting['device']}; install jax for it")
    mesh = make_mesh(data=-1)
    jax.set_mesh(mesh)
    pair = s2s.from_pretrained(setting["directory"], dtype=jnp.dtype(setting["dtype"]), mesh=mesh)
    config = OptimizerConfig(learning_rate=setting["learning_rate"], schedule="constant")
    tx = optimizer(config, 1000)
    step = make_train_step(pair.model, tx, learning_rate(config, 1000), seed=0)
    return {"step": jax.jit(step, donate_argnums=0), "state": TrainState.create(pair.params, tx), "mesh": mesh}, setting


def train(loaded, request):
    held = loaded[0]
    batch = {name: np.asarray(request[name], np.int32) for name in ("input_ids", "labels")}
    batch["attention_mask"] = np.ones_like(batch["input_ids"])

    def work():
        held["state"], metrics = held["step"](held["state"], shard_batch(batch, held["mesh"]))
        return {"loss": float(metrics["loss"])}

    return work


if __name__ == "__main__":
    kinds = {"train": train, "rates": rates}
    harness.serve(load, kinds, ("jax", "jaxlib", "flax", "optax", "numpy"), (reset, peak))
