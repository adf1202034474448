"""The training step of seq2seq_jax, as a run makes it."""

import harness
import jax
import numpy as np
from ours_decode import peak, rates, reset

import seq2seq_jax as s2s
from seq2seq_jax.config import TrainConfig, from_mapping
from seq2seq_jax.models.cpu import keep_memory, release_memory
from seq2seq_jax.parallel.mesh import make_mesh, shard_batch
from seq2seq_jax.training.setup import make_training


def load(setting):
    keep_memory()  # as scripts/train.py does; `release_memory` below as its loop does
    if jax.default_backend() != setting["device"]:
        raise RuntimeError(f"jax runs on {jax.default_backend()}, not {setting['device']}; install jax for it")
    mesh = make_mesh(data=-1)
    jax.set_mesh(mesh)
    pair = s2s.from_pretrained(setting["directory"], mesh=mesh)
    values = {"encoder": setting["directory"], "decoder": setting["directory"], "data": {"train": "given"}}
    # No update_norm: the others do not measure it.
    values |= {"num_steps": 1000, "dtype": setting["dtype"], "update_norm": False, **setting.get("config", {})}
    values["optimizer"] = {"learning_rate": setting["learning_rate"], "schedule": "constant"}
    training = make_training(from_mapping(TrainConfig, values), pair.model, pair.params, 1000)
    state = training.init_state(pair.params)
    step = jax.jit(training.train_step, donate_argnums=0, out_shardings=(state.shardings(), None))
    return {"step": step, "state": state, "mesh": mesh}, setting


def train(loaded, request):
    held = loaded[0]
    batch, new = {name: np.asarray(rows, np.int32) for name, rows in request["arrays"].items()}, True

    def work():
        nonlocal new
        held["state"], metrics = held["step"](held["state"], shard_batch(batch, held["mesh"]))
        loss = float(metrics["loss"])
        if new:
            release_memory()
        new = False
        return {"loss": loss}

    return work


if __name__ == "__main__":
    kinds = {"train": train, "rates": rates}
    harness.serve(load, kinds, ("jax", "jaxlib", "flax", "optax", "numpy"), (reset, peak))
