"""A run without its devices: the real training step and the real search, compiled from shapes alone.

Nothing is allocated and no weights are read: the sides' config.json are enough. The programs are those of the run: the
step of `training/setup.py`, donated, on the config's mesh, its state where the run would have it; and `start` and
`advance` of `decoding/engine.py` in decoding form. What the compiler makes of them is read by `dryrun_hlo.py`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, Mesh, NamedSharding

from seq2seq_jax.config import ATTENTION_IMPLS, EncoderDecoderConfig, GenerationConfig, TrainConfig, check
from seq2seq_jax.data.plan import BatchPlan, Bucket
from seq2seq_jax.decoding import engine
from seq2seq_jax.decoding.generate import rules_of, strategy_of
from seq2seq_jax.decoding.loop import Source
from seq2seq_jax.lab.dryrun_chips import Chip
from seq2seq_jax.lab.dryrun_hlo import Cost, Program, sizes_of
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.models.layers import Dtype
from seq2seq_jax.models.transformer import check_length
from seq2seq_jax.parallel.mesh import batch_parts, batch_sharding
from seq2seq_jax.pretrained.warm_start import new_pair
from seq2seq_jax.training.flops import StepFlops, step_flops
from seq2seq_jax.training.loop import check_division
from seq2seq_jax.training.setup import abstract_state, make_training
from seq2seq_jax.weights import hf_config
from seq2seq_jax.weights.params import abstract_params
from seq2seq_jax.weights.report import Report

# Of the schedule, where the config counts in epochs; no shape depends on it.
STEPS = 1000
# Arguments of from_encoder_decoder_pretrained that no shape depends on.
STARTS = ("cross_attention_init", "head_init", "seed")
TOKENS = ("decoder_start_token_id", "pad_token_id", "eos_token_id")


class DoesNotFit(Exception):
    """The compiler found no way to fit a program into a device's memory; `needed` bytes, None if it does not say."""

    def __init__(self, message: str):
        super().__init__(message)
        used = re.search(r"Used ([\d.]+)([KMG]) of", message)
        self.needed = int(float(used.group(1)) * 1024 ** ("KMG".index(used.group(2)) + 1)) if used else None


class Memory(NamedTuple):
    """Bytes a chip, of a compiled program; `temporaries` are gradients, activations and what is made on the way."""

    arguments: int
    outputs: int
    donated: int
    temporaries: int
    program: int

    @property
    def peak(self) -> int:
        """All together; donated arguments and the outputs in their place count once."""
        return self.arguments + self.outputs - self.donated + self.temporaries + self.program


class Bounds(NamedTuple):
    """Seconds below which a program cannot be: for its FLOPs, for its traffic to memory, for what it sends."""

    compute: float
    memory: float
    network: float

    @property
    def greatest(self) -> float:
        return max(self)

    @property
    def limit(self) -> str:
        return self._fields[int(np.argmax(self))]


def bounds(cost: Cost, chip: Chip) -> Bounds:
    return Bounds(cost.flops / chip.flops, cost.bytes / chip.bandwidth, cost.sent / chip.network)


@dataclass(frozen=True)
class TrainReport:
    """A training step. bucket: the batch's shape. dtype: what it is computed in. held: bytes a chip of parameters,
    optimizer state and averages. flops: by the shapes, of all chips. cost: of a chip, by the compiled program. memory:
    None if it does not fit, then `needed` says how much it wants, where the compiler tells."""

    bucket: Bucket
    dtype: str
    held: Mapping[str, int]
    flops: StepFlops
    cost: Cost | None
    memory: Memory | None
    needed: int | None = None

    def bounds(self, chip: Chip, chips: int) -> Bounds:
        """Of the compiled program; with custom kernels, whose FLOPs its text lacks, at least those by shapes."""
        found = bounds(self.cost, chip)
        shapes = self.flops.done / (chips * chip.flops) if self.cost.kernels else 0.0
        return found._replace(compute=max(found.compute, shapes))


@dataclass(frozen=True)
class DecodeReport:
    """A search. rows, source: its input. beams, capacity: of the cache. dtype: what it is computed in. held: bytes a
    chip of parameters and cache. start: what comes before the first step. step: of one step at the full capacity.
    memory: of the loop. cache_gathers: exchanges, in a step, of arrays that have a layer's cached keys' or values'
    sizes on a chip, and no parameter's."""

    rows: int
    source: int
    beams: int
    capacity: int
    dtype: str
    held: Mapping[str, int]
    start: Cost | None
    step: Cost | None
    memory: Memory | None
    cache_gathers: int | None
    needed: int | None = None


def check_config(config: TrainConfig, devices: Sequence[Any]) -> None:
    """Raises ValueError for a program that is not compiled here, or not for these devices."""
    check(
        config.mesh.mode == "jit",
        f"mesh.mode is {config.mesh.mode!r}, and a dry run compiles jit's program alone; give mesh.mode=jit",
    )
    needed, platform = ATTENTION_IMPLS[config.attention_impl], devices[0].platform
    check(
        needed in (None, platform),
        f"attention_impl {config.attention_impl!r} needs a {needed}, and these devices are of a {platform}; give 'xla'",
    )


def abstract_model(
    config: TrainConfig, encoder: Mapping[str, Any], decoder: Mapping[str, Any], mesh: Mesh, dtype: Dtype
) -> EncoderDecoder:
    """The model that the run would warm-start, from the contents of the sides' config.json.

    Token ids that only a tokenizer would tell are 0.

    Raises:
      ValueError: for what is wrong with warm_start or a config.json.
    """
    options = {name: value for name, value in config.warm_start.items() if name not in STARTS}
    tie = options.pop("tie_encoder_decoder", False)
    tokens = tuple(options.pop(name, None) for name in TOKENS)
    sides, overrides = {"encoder": encoder, "decoder": decoder}, hf_config.split_overrides(options)
    for role, hf in sides.items():
        depth = hf_config.side_from_hf(hf, role).stored_layers
        sides[role], _ = hf_config.overridden(hf, role, overrides[role], depth)
    pair = new_pair(sides["encoder"], sides["decoder"], tie, mesh, tokens, None, Report())
    return EncoderDecoder(_with_tokens(pair), dtype=dtype)


def _with_tokens(pair: EncoderDecoderConfig) -> EncoderDecoderConfig:
    given = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_ids": (0,)}
    missing = {name: value for name, value in given.items() if getattr(pair, name) in (None, ())}
    return dataclasses.replace(pair, **missing)


def batch_shape(config: TrainConfig, mesh: Mesh) -> Bucket:
    """The run's largest batch: of examples that reach both limits of the data section.

    Raises:
      ValueError: if the mesh does not divide it.
    """
    lengths = (np.array([config.data.max_source_length]), np.array([config.data.max_target_length]))
    plan = BatchPlan(*lengths, config.batch, seed=0)
    check_division(plan, config.batch.accumulation, mesh)
    return plan.buckets[-1]


def abstract_batch(bucket: Bucket, mesh: Mesh, *, packed: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """What `data.pipeline.make_batch` gives, spread over the mesh."""
    source, target = ("input_ids", "attention_mask"), ("labels",)
    if packed:
        source, target = (*source, "encoder_pack_ids"), (*target, "decoder_pack_ids")
    lengths = {**dict.fromkeys(source, bucket.source_length), **dict.fromkeys(target, bucket.target_length)}
    place = batch_sharding(mesh)
    return {k: jax.ShapeDtypeStruct((bucket.rows, n), jnp.int32, sharding=place) for k, n in lengths.items()}


def dry_train(config: TrainConfig, model: EncoderDecoder, mesh: Mesh) -> TrainReport:
    """Compiles one training step as the run does: in the config's dtype, over parameters in float32.

    Raises:
      ValueError: if the mesh does not divide the batch, or an example may be longer than the model takes.
    """
    bucket, params = batch_shape(config, mesh), abstract_params(model, mesh, jnp.float32)
    check_length(model.config.encoder, config.data.max_source_length)
    check_length(model.config.decoder, config.data.max_target_length)
    training = make_training(config, model, params, config.num_steps or STEPS)
    state = abstract_state(training, params)
    batch = abstract_batch(bucket, mesh, packed=config.batch.packing)
    held = {"parameters": bytes_held(state.params), "optimizer state": bytes_held(state.opt_state)}
    held |= {} if state.ema is None else {"averages": bytes_held(state.ema)}
    flops = step_flops(training.model, training.model_frozen, bucket.rows, bucket.source_length, bucket.target_length)
    report = TrainReport(bucket, jnp.dtype(training.model.dtype).name, held, flops, None, None)
    step = jax.jit(training.step, donate_argnums=0, out_shardings=(state.shardings(), None))
    try:
        compiled = _compiled(step, mesh, state, batch)
    except DoesNotFit as error:
        return dataclasses.replace(report, needed=error.needed)
    return dataclasses.replace(report, cost=Program(compiled.as_text()).cost(), memory=_memory(compiled))


def dry_decode(config: TrainConfig, model: EncoderDecoder, mesh: Mesh) -> DecodeReport:
    """Compiles the search that the config's generation section asks for, on evaluation.batch_size examples of the
    greatest source length, parameters in the model's dtype; the cache has room for the greatest length.

    Raises:
      ValueError: if the mesh does not divide the batch.
    """
    rows, source, parts = config.evaluation.batch_size, config.data.max_source_length, batch_parts(mesh)
    if rows % parts:
        raise ValueError(
            f"evaluation.batch_size is {rows}, and the mesh splits it {parts} ways; give a multiple of {parts}"
        )
    settings = GenerationConfig().replace(**config.generation)
    strategy, rules = strategy_of(settings), rules_of(settings, model.config, 1, source)
    capacity = engine.room(strategy, int(rules.max_length))
    params = decoding_params(model, mesh)
    model = model.for_decoding()

    def given(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh, len(shape)))

    inputs = Source(given(jnp.int32, rows, source), given(jnp.bool_, rows, source), given(jnp.int32, rows))
    prompt = given(jnp.int32, rows, 1)
    held, dtype = {"parameters": bytes_held(params)}, jnp.dtype(model.dtype).name
    report = DecodeReport(rows, source, strategy.slots, capacity, dtype, held, *(None,) * 4)
    start = jax.jit(engine.start.__wrapped__, static_argnames=("model", "strategy", "capacity"))
    try:
        begun = _compiled(start, mesh, model, strategy, capacity, params, inputs, {}, prompt, rules)
        carry = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            begun.out_info, begun.output_shardings,
        )  # fmt: skip
        report = dataclasses.replace(report, held={**report.held, "cache": bytes_held(carry.cache)})
        loop = _compiled(engine.advance, mesh, model, strategy, params, carry, rules, np.int32(capacity), np.int32(0))
    except DoesNotFit as error:
        return dataclasses.replace(report, needed=error.needed)
    program = Program(loop.as_text())
    step = program.cost(unknown_turns=1).plus(program.cost(unknown_turns=0), -1)
    stores = (carry.cache.keys, carry.cache.values, carry.cache.cross)
    return dataclasses.replace(
        report,
        start=Program(begun.as_text()).cost(),
        step=step,
        memory=_memory(loop),
        cache_gathers=exchanges(step, stores, params),
    )


def exchanges(cost: Cost, arrays: Any, others: Any) -> int:
    """How many exchanges, sums aside, are of something that has the sizes of one of `arrays` on a chip, and of none of
    `others`.

    Args:
      arrays, others: trees of abstract arrays with shardings.
    """
    sizes = lambda tree: {sizes_of(a.sharding.shard_shape(a.shape)) for a in jax.tree.leaves(tree)}
    meant = sizes(arrays) - sizes(others)
    return int(sum(n for c, n in cost.collectives.items() if c.kind != "all-reduce" and meant & {*c.given}))


def decoding_params(model: EncoderDecoder, mesh: Mesh) -> Any:
    """`model.decoding_params` of abstract parameters in the model's dtype, each where its numbers would come to lie."""
    explicit = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Explicit,) * len(mesh.axis_names))
    shapes = jax.eval_shape(model.decoding_params, abstract_params(model, explicit, model.dtype))

    def placed(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, x.sharding.spec))

    return jax.tree.map(placed, shapes)


def bytes_held(tree: Any) -> int:
    """Bytes of abstract arrays on one device."""
    return sum(_local_size(leaf) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _local_size(leaf: jax.ShapeDtypeStruct) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape))


def count_parameters(params: Any, frozen: Any) -> tuple[int, int]:
    """All, and those that are trained."""
    flat, fixed = flatten_dict(params, sep="/"), {} if frozen is None else flatten_dict(frozen, sep="/")
    sizes = {path: math.prod(leaf.shape) for path, leaf in flat.items()}
    return sum(sizes.values()), sum(size for path, size in sizes.items() if not fixed.get(path, False))


def _compiled(function: Any, mesh: Mesh, *arguments: Any) -> jax.stages.Compiled:
    """Compiled for the mesh's devices, under it."""
    with jax.set_mesh(mesh):
        traced = function.trace(*arguments)
        lowered = traced.lower(lowering_platforms=(mesh.devices.flat[0].platform,))
        try:
            return lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "Ran out of memory" in str(error):
                raise DoesNotFit(str(error)) from error
            raise


def _memory(compiled: jax.stages.Compiled) -> Memory:
    m = compiled.memory_analysis()
    return Memory(
        m.argument_size_in_bytes,
        m.output_size_in_bytes,
        m.alias_size_in_bytes,
        m.temp_size_in_bytes,
        m.generated_code_size_in_bytes,
    )
