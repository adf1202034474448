"""Compiles a run's training step and search from shapes alone, without the run's devices.

No array is allocated and no weights are read: the config.json of both sides is enough. The programs are those of a run:
the step of `training/setup.py` on the config's mesh, its state donated and sharded as in the run; and `start` and
`advance` of `decoding/engine.py`, with the model in decoding form. XLA's analyses say what the compiled programs need.
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
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.models.layers import Dtype
from seq2seq_jax.models.transformer import check_length
from seq2seq_jax.parallel.mesh import batch_parts, batch_sharding
from seq2seq_jax.pretrained.pair import new_pair
from seq2seq_jax.training.flops import StepFlops, step_flops
from seq2seq_jax.training.loop import check_division
from seq2seq_jax.training.setup import abstract_state, make_training
from seq2seq_jax.weights import hf_config
from seq2seq_jax.weights.loading import abstract_params
from seq2seq_jax.weights.report import Report
from tools.dryrun.chips import Chip
from tools.dryrun.cost import Cost, program_cost
from tools.dryrun.hlo import sizes_of

# The length of the schedule if the config counts in epochs; no shape depends on it.
STEPS = 1000
# Arguments of from_encoder_decoder_pretrained that no shape depends on.
INITIALIZATION = ("cross_attention_init", "head_init", "seed")
TOKENS = ("decoder_start_token_id", "pad_token_id", "eos_token_id")


class DoesNotFit(Exception):
    """A program needs more than a device's memory: `needed` bytes, or None if the compiler does not say."""

    def __init__(self, message: str):
        super().__init__(message)
        used = re.search(r"Used ([\d.]+)([KMG]) of", message)
        self.needed = int(float(used.group(1)) * 1024 ** ("KMG".index(used.group(2)) + 1)) if used else None


class Memory(NamedTuple):
    """The memory of a compiled program on one chip, in bytes (XLA's `memory_analysis`). Gradients and activations are
    among the temporaries."""

    arguments: int
    outputs: int
    donated: int
    temporaries: int
    program: int

    @property
    def peak(self) -> int:
        """The sum. Donated arguments are counted once: outputs take their place."""
        return self.arguments + self.outputs - self.donated + self.temporaries + self.program


class Bounds(NamedTuple):
    """The least time that a program needs, in seconds, for its FLOPs, for its main memory traffic and for what it sends
    to other chips."""

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
    """A compiled training step.

    Attributes:
      bucket: the batch's shape. dtype: of the computation.
      held: bytes a chip of parameters, optimizer state and averages.
      flops: by shapes, of all chips.
      cost: of one chip. memory: of one chip. Both are None if the step does not fit; `needed` is then the bytes that it
        needs, if the compiler says so.
    """

    bucket: Bucket
    dtype: str
    held: Mapping[str, int]
    flops: StepFlops
    cost: Cost | None
    memory: Memory | None
    needed: int | None = None

    def bounds(self, chip: Chip, chips: int) -> Bounds:
        """Of the compiled program. With custom kernels, whose FLOPs XLA does not know, at least those by shapes."""
        found = bounds(self.cost, chip)
        shapes = self.flops.done / (chips * chip.flops) if self.cost.kernels else 0.0
        return found._replace(compute=max(found.compute, shapes))


@dataclass(frozen=True)
class DecodeReport:
    """A compiled search.

    Attributes:
      rows, source: the shape of its input. beams, capacity: of the cache. dtype: of the computation.
      held: bytes a chip of parameters and cache.
      start: the cost, on one chip, of what comes before the first step. step: of one step at the full capacity.
      memory: of the loop, on one chip.
      cache_gathers: how many collectives of a step move an array of the size of a layer's cached keys or values on a
        chip, and of no parameter's size.
      needed: the bytes that it needs if it does not fit, if the compiler says so.
    """

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
    """Raises ValueError for a config that a dry run cannot compile, or not for these devices."""
    check(
        config.mesh.mode == "jit",
        f"mesh.mode is {config.mesh.mode!r}, and a dry run compiles the program of jit only; give mesh.mode=jit",
    )
    needed, platform = ATTENTION_IMPLS[config.attention_impl], devices[0].platform
    check(
        needed in (None, platform),
        f"attention_impl {config.attention_impl!r} needs a {needed}, and these devices are of a {platform}; give 'xla'",
    )


def abstract_model(
    config: TrainConfig, encoder: Mapping[str, Any], decoder: Mapping[str, Any], mesh: Mesh, dtype: Dtype
) -> EncoderDecoder:
    """The model that the run would warm-start, from the content of the config.json of both sides.

    Token ids that come from a tokenizer are 0.

    Raises:
      ValueError: if warm_start or a config.json is wrong.
    """
    options = {name: value for name, value in config.warm_start.items() if name not in INITIALIZATION}
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
    """The run's largest batch: that of examples as long as the data section allows.

    Raises:
      ValueError: if the mesh does not divide it.
    """
    lengths = (np.array([config.data.max_source_length]), np.array([config.data.max_target_length]))
    plan = BatchPlan(*lengths, config.batch, seed=0)
    check_division(plan, config.batch.accumulation, mesh)
    return plan.buckets[-1]


def abstract_batch(bucket: Bucket, mesh: Mesh, *, packed: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays that `data.pipeline.make_batch` makes, sharded over the mesh."""
    source, target = ("input_ids", "attention_mask"), ("labels",)
    if packed:
        source, target = (*source, "encoder_pack_ids"), (*target, "decoder_pack_ids")
    lengths = {**dict.fromkeys(source, bucket.source_length), **dict.fromkeys(target, bucket.target_length)}
    place = batch_sharding(mesh)
    return {k: jax.ShapeDtypeStruct((bucket.rows, n), jnp.int32, sharding=place) for k, n in lengths.items()}


def dry_train(config: TrainConfig, model: EncoderDecoder, mesh: Mesh) -> TrainReport:
    """Compiles one training step as the run does: in the config's dtype, with float32 parameters.

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
    step = jax.jit(training.train_step, donate_argnums=0, out_shardings=(state.shardings(), None))
    try:
        compiled = _compiled(step, mesh, state, batch)
    except DoesNotFit as error:
        return dataclasses.replace(report, needed=error.needed)
    return dataclasses.replace(report, cost=program_cost(compiled.as_text()), memory=_memory(compiled))


def dry_decode(config: TrainConfig, model: EncoderDecoder, mesh: Mesh) -> DecodeReport:
    """Compiles the search of the config's generation section, on evaluation.batch_size examples of the greatest source
    length, with parameters in the model's dtype and a cache for the greatest length.

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
    text = loop.as_text()
    # The search's loop ends when all rows are done: one trip less none is one step.
    step = program_cost(text, unknown_trips=1).plus(program_cost(text, unknown_trips=0), -1)
    stores = (carry.cache.keys, carry.cache.values, carry.cache.cross)
    return dataclasses.replace(
        report,
        start=program_cost(begun.as_text()),
        step=step,
        memory=_memory(loop),
        cache_gathers=count_exchanges(step, stores, params),
    )


def count_exchanges(cost: Cost, arrays: Any, others: Any) -> int:
    """How many collectives, sums aside, move an array that has the size of one of `arrays` on a chip, and of none of
    `others`.

    Args:
      arrays, others: trees of abstract arrays with shardings.
    """
    sizes = lambda tree: {sizes_of(a.sharding.shard_shape(a.shape)) for a in jax.tree.leaves(tree)}
    sought = sizes(arrays) - sizes(others)
    return int(sum(n for c, n in cost.collectives.items() if c.kind != "all-reduce" and sought & {*c.inputs}))


def decoding_params(model: EncoderDecoder, mesh: Mesh) -> Any:
    """`model.decoding_params` of abstract parameters in the model's dtype, sharded as they would be."""
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
    """The number of parameters, and of those that are trained."""
    flat, fixed = flatten_dict(params, sep="/"), {} if frozen is None else flatten_dict(frozen, sep="/")
    sizes = {path: math.prod(leaf.shape) for path, leaf in flat.items()}
    return sum(sizes.values()), sum(size for path, size in sizes.items() if not fixed.get(path, False))


def _compiled(function: Any, mesh: Mesh, *arguments: Any) -> jax.stages.Compiled:
    """Compiles a jitted function for the mesh's devices.

    Raises:
      DoesNotFit: if the devices' memory is too small.
    """
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
