"""Prepares a run: its examples, its pair, its training step and the first state."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from seq2seq_jax.config import (
    ATTENTION_IMPLS,
    DROPOUT_BITS,
    DataConfig,
    EncoderDecoderConfig,
    GenerationConfig,
    TrainConfig,
)
from seq2seq_jax.data.encoding import EncodedPairs, encode_pairs
from seq2seq_jax.data.sources import load_pairs
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.parallel.mesh import state_shardings
from seq2seq_jax.pretrained.pair import Pretrained
from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_configs, from_encoder_decoder_pretrained
from seq2seq_jax.text.tokenizer import Tokenizers
from seq2seq_jax.training import lora
from seq2seq_jax.training.groups import ParameterGroups, assign_groups
from seq2seq_jax.training.optimizers import optimizer
from seq2seq_jax.training.schedules import learning_rate
from seq2seq_jax.training.state import TrainState, averaged_params
from seq2seq_jax.training.step import StepConfig, make_train_step
from seq2seq_jax.weights.params import layer_paths
from seq2seq_jax.weights.special_tokens import with_tokens_of

DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "embedding_dropout")


def load_examples(settings: DataConfig, tokenizers: Tokenizers, *, seed: int) -> tuple[EncodedPairs, EncodedPairs]:
    """The training and the validation examples, encoded.

    Raises:
      FileNotFoundError, ValueError: naming what is wrong with the data.
    """
    train = _load(settings, settings.train, settings.train_limit)
    if settings.validation is None:
        train, validation = _hold_out(train, settings, seed)
        names = (f"{settings.train} (training part)", f"{settings.train} (held out)")
    else:
        validation = _load(settings, settings.validation, settings.validation_limit)
        names = (settings.train, settings.validation)
    encoded = [encode_pairs(pairs, *tokenizers, settings, name) for pairs, name in zip((train, validation), names)]
    return encoded[0], encoded[1]


def _load(settings: DataConfig, name: str, limit: int | None) -> datasets.Dataset:
    fields = {"source_field": settings.source_field, "target_field": settings.target_field}
    return load_pairs(name, **fields, limit=limit, subset=settings.subset)


def _hold_out(pairs: datasets.Dataset, settings: DataConfig, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    if len(pairs) < 2:
        raise ValueError(f"{settings.train} has 1 example, so none can be held out; give more, or data.validation")
    count = max(1, min(settings.holdout, len(pairs) // 10, settings.validation_limit or len(pairs)))
    parts = pairs.train_test_split(test_size=count, seed=seed)
    return parts["train"], parts["test"]


def warm_start(config: TrainConfig, mesh: Mesh, tokenizers: Tokenizers) -> Pretrained:
    """The pair that the config asks for, with its generation settings.

    Raises:
      ValueError: if a tokenizer has more tokens than its side has embeddings, or texts may outgrow its positions.
    """
    pretrained = from_encoder_decoder_pretrained(
        config.encoder, config.decoder, mesh=mesh, seed=config.seed, **config.warm_start
    )
    for role, tokenizer, path in zip(("encoder", "decoder"), tokenizers, (config.encoder, config.decoder)):
        rows = getattr(pretrained.config, role).vocab_size
        if tokenizer.vocab_size > rows:
            raise ValueError(
                f"the tokenizer of {path} has {tokenizer.vocab_size} tokens, and the {role}'s embedding table"
                f" {rows} rows; they do not belong together: mend the directory, or lengthen the table"
                " (resize_token_embeddings) and save that"
            )
    pair = with_tokens_of(tokenizers.target, pretrained.config, pretrained.report)
    pretrained = pretrained.replace(model=pretrained.model.clone(config=pair))
    generation = pretrained.generation_config.replace(**config.generation)
    _check_lengths(pretrained.config, config.data, generation)
    if not config.random_weights:
        return pretrained.replace(generation_config=generation)
    sides = pretrained.config.encoder, pretrained.config.decoder
    tokens = {"decoder_start_token_id": pretrained.config.decoder_start_token_id}
    tokens |= {"pad_token_id": pretrained.config.pad_token_id, "eos_token_id": pretrained.config.eos_token_ids}
    random = from_encoder_decoder_configs(*sides, seed=config.seed, mesh=mesh, **tokens)
    return random.replace(generation_config=generation)


def _check_lengths(pair: EncoderDecoderConfig, data: DataConfig, generation: GenerationConfig) -> None:
    for name, length, role in (
        ("data.max_source_length", data.max_source_length, "encoder"),
        ("data.max_target_length", data.max_target_length, "decoder"),
        ("generation.max_length", generation.max_length or 0, "decoder"),
    ):
        most = getattr(pair, role).max_positions
        if length > most:
            raise ValueError(
                f"{name} is {length} and the {role} has {most} positions; lower it, or give"
                f" warm_start.{role}_max_position_embeddings"
            )


def check_backend(attention_impl: str) -> None:
    """A ValueError where this process lacks the devices that an attention kernel needs."""
    needed, backend = ATTENTION_IMPLS[attention_impl], jax.default_backend()
    if needed not in (None, backend):
        raise ValueError(
            f"attention_impl {attention_impl!r} needs a {needed}, and this process has a {backend}; give 'xla'"
        )


def training_model(model: EncoderDecoder, config: TrainConfig) -> tuple[EncoderDecoder, bool]:
    """The model as the training step applies it (dropout, remat, dtype), and whether any dropout rate is above 0."""
    pair = model.config
    rates = {} if config.dropout is None else dict.fromkeys(DROPOUTS, config.dropout)
    if config.attention_dropout is not None:
        rates["attention_dropout"] = config.attention_dropout
    sides = {role: dataclasses.replace(getattr(pair, role), **rates) for role in ("encoder", "decoder")}
    pair = dataclasses.replace(pair, **sides)
    acts = any(getattr(side, name) for side in (pair.encoder, pair.decoder) for name in DROPOUTS)
    form = {"remat": config.remat, "attention_impl": config.attention_impl, "dtype": jnp.dtype(config.dtype)}
    form["scan_unroll"] = config.scan_unroll
    return model.clone(config=pair, **form), acts


@dataclass(frozen=True)
class Training:
    """How a run trains a pair.

    Attributes:
      model: as the step applies it. train_step: (state, batch) -> (state, metrics), pure; it consumes the state.
      groups: of the trained parameters. tx: the optimizer, of these groups.
      model_frozen: a tree of booleans like the parameters that the model is applied with; None: all are trained.
    """

    config: TrainConfig
    model: EncoderDecoder
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    groups: ParameterGroups
    tx: optax.GradientTransformationExtraArgs
    model_frozen: Any

    def init_state(self, params: Any) -> TrainState:
        """The first state, of the pair's parameters, which it takes over."""
        averaged = None if self.config.ema_decay is None else self.groups.trained_tree
        params = _trained_params(self.config, self.model.config, params)
        return TrainState.create(params, self.tx, averaged=averaged, loss_scale=self.config.dtype == "float16")

    def eval_params(self, state: TrainState) -> Any:
        """The pair's parameters to evaluate and to export: averages in place, adapters merged in."""
        params = averaged_params(state)
        return _merge_adapters(params, self.config.lora) if self.config.lora.rank else params

    @property
    def has_eval_params(self) -> bool:
        """Whether `eval_params` differ from state.params."""
        return self.config.lora.rank > 0 or self.config.ema_decay is not None


_merge_adapters = jax.jit(lora.merge_adapters, static_argnums=1)


def _trained_params(config: TrainConfig, pair: EncoderDecoderConfig, params: Any) -> Any:
    """The pair's parameters with adapters, if the config has some."""
    return lora.add_adapters(params, config.lora, pair, seed=config.seed) if config.lora.rank else params


def make_training(
    config: TrainConfig, model: EncoderDecoder, params: Any, num_steps: int, *, axis_name: str | None = None
) -> Training:
    """The training that the config asks for.

    Args:
      params: the pair's; only their shapes are read. axis_name: pmap's.

    Raises:
      ValueError: for groups, frozen parameters or adapters that do not fit the pair; names them.
    """
    shapes = jax.eval_shape(lambda tree: _trained_params(config, model.config, tree), params)
    groups = assign_groups(config.optimizer, model.config, shapes, num_steps)
    tx, merge, model_frozen = optimizer(config.optimizer, groups), None, groups.frozen
    if config.lora.rank:
        merge = functools.partial(lora.merge_adapters, config=config.lora)
        model_frozen = lora.merged_frozen(shapes)
    applied, dropout = training_model(model, config)
    step_config = StepConfig(
        seed=config.seed,
        dropout=dropout,
        dropout_bits=DROPOUT_BITS[config.dropout_bits],
        loss=config.loss,
        accumulation=config.batch.accumulation,
        axis_name=axis_name,
        ema_decay=config.ema_decay,
        skip_above=config.optimizer.skip_above,
        scale_loss=config.dtype == "float16",
        update_norm=config.update_norm,
    )
    schedule = learning_rate(config.optimizer, num_steps)
    step = make_train_step(applied, tx, schedule, step_config, groups=groups, merge=merge, frozen=model_frozen)
    return Training(config, applied, step, groups, tx, model_frozen)


def frozen_new_params(pretrained: Pretrained, groups: ParameterGroups) -> list[str]:
    """Paths of parameters that no checkpoint holds and that the groups freeze, layer by layer."""
    new = {entry.name for entry in pretrained.report.of("initialised")}
    frozen = (path for path in groups.arrays if groups.is_frozen(path))
    return [name for path in frozen for name in layer_paths(pretrained.config, path)[0] if name in new]


def abstract_state(training: Training, params: Any) -> TrainState:
    """training.init_state(params) as shapes, dtypes and shardings alone: what the optimizer keeps in a parameter's
    shape is sharded as the parameter is (`TrainState.create`); the rest is on every device.

    Args:
      params: jax.ShapeDtypeStructs with NamedShardings.
    """
    state = jax.eval_shape(training.init_state, params)
    struct = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(struct, state, state_shardings(state, params))
