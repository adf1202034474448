"""Run by test_dryrun.py in a process of its own: scripts/dryrun.py on 8 virtual devices, then what it claims about
places, against real arrays. Prints one line per check that held."""

import json
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
OUTPUT = sys.argv[1]
BERT = {
    "model_type": "bert",
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}
CONFIG = {
    "data.max_source_length": 16,
    "data.max_target_length": 8,
    "batch.size": 16,
    "batch.buckets": 1,
    "evaluation.batch_size": 12,
    "remat": "full",
    "dropout": 0.0,
    "dtype": "bfloat16",
    "generation.num_beams": 2,
    "generation.max_length": 8,
    "mesh.data": 2,
    "mesh.fsdp": 2,
    "mesh.tensor": 2,
}


def held(name):
    print("held:", name, flush=True)


sides = [f"--{role}_config={json.dumps(BERT)}" for role in ("encoder", "decoder")]
fields = [f"--config.{name}={value}" for name, value in CONFIG.items()]
script = [str(ROOT / "scripts/dryrun.py"), f"--config={ROOT / 'configs/common.py'}", "--devices", "8"]
sys.argv = [*script, *sides, *fields, f"--output={OUTPUT}"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
held("scripts/dryrun.py")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from seq2seq_jax.config import TrainConfig, from_mapping  # noqa: E402
from seq2seq_jax.parallel.mesh import make_mesh  # noqa: E402
from seq2seq_jax.pretrained.pair import from_encoder_decoder_configs  # noqa: E402
from seq2seq_jax.training.setup import abstract_state, make_training  # noqa: E402
from seq2seq_jax.weights.loading import abstract_params  # noqa: E402
from tools.dryrun import compile as dryrun  # noqa: E402
from tools.dryrun import mesh_search  # noqa: E402
from tools.dryrun.chips import CHIPS  # noqa: E402

values = {"encoder": "x", "decoder": "x", "data": {"train": "x", "max_source_length": 16, "max_target_length": 8}}
values |= {"batch": {"size": 16}, "num_steps": 1, "optimizer": {"freeze": ("encoder.embeddings",)}}
config = from_mapping(TrainConfig, values)
mesh = make_mesh(data=2, fsdp=2, tensor=2)
model = dryrun.abstract_model(config, BERT, BERT, mesh, jnp.float32)
pair = from_encoder_decoder_configs(BERT, BERT, decoder_start_token_id=0, mesh=mesh)


def same_places(abstract, real):
    assert jax.tree.structure(abstract) == jax.tree.structure(real)
    for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(real)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        # What is on no particular device, a step's number say, goes to all.
        where = b.sharding if b.committed else a.sharding
        assert a.sharding.is_equivalent_to(where, a.ndim), (a, b.sharding)


with jax.set_mesh(mesh):
    params = abstract_params(model, mesh, jnp.float32)
    training = make_training(config, model, params, 1)
    same_places(abstract_state(training, params), training.init_state(pair.params))
    held("the state lies where a run's does")
same_places(dryrun.decoding_params(model, mesh), pair.model.decoding_params(pair.params))
held("decoding parameters lie where a search's do")

# A search that has the cached keys whole in each step.
step_function, whole = dryrun.engine.step_function, NamedSharding(mesh, PartitionSpec())


def gathering(*arguments):
    step = step_function(*arguments)
    gathered = lambda cache: cache.replace(keys=jax.lax.with_sharding_constraint(cache.keys, whole))
    return lambda tokens, cache: step(tokens, gathered(cache))


dryrun.engine.step_function = gathering
settings = {"evaluation": {"batch_size": 12}, "generation": {"num_beams": 3, "max_length": 8}}
assert dryrun.dry_decode(from_mapping(TrainConfig, {**values, **settings}), model, mesh).cache_gathers > 0
dryrun.engine.step_function = step_function
held("exchanges of the cache are counted")

chip = CHIPS["v5e"]
candidates = mesh_search.legal(config, lambda m: dryrun.abstract_model(config, BERT, BERT, m, jnp.float32),
                                 jax.devices(), chip)  # fmt: skip
found = {tuple(c.layout) for c in candidates}
# 4 heads: tensor is 1, 2 or 4; all widths divide, and 16 rows.
assert found == {(d, f, 8 // (d * f)) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if 8 % (d * f) == 0} - {(1, 1, 8)}
times = [c.estimate.greatest for c in candidates]
assert times == sorted(times)
table = mesh_search.search_table(candidates, chip)
assert table.count("(estimate)") == len(candidates) and "does NOT fit" not in table
small = chip._replace(memory=1000)
assert mesh_search.search_table(candidates, small).count("does NOT fit") == len(candidates)
held("all legal meshes")
try:
    mesh_search.legal(from_mapping(TrainConfig, {**values, "batch": {"size": 3}}),
                        lambda m: model, jax.devices(), chip)  # fmt: skip
    raise AssertionError("a batch of 3 was split")
except ValueError as error:
    assert "no mesh of 8 devices" in str(error), error
try:
    dryrun.dry_decode(from_mapping(TrainConfig, {**values, "evaluation": {"batch_size": 6}}), model, mesh)
    raise AssertionError("6 rows were split 4 ways")
except ValueError as error:
    assert "multiple of 4" in str(error), error
held("what does not divide is refused")
