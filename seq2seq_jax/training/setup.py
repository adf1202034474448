"""What a run begins with: its examples and its pair."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import datasets
import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seq2seq_jax.config import DataConfig, EncoderDecoderConfig, GenerationConfig, TrainConfig
from seq2seq_jax.data.encoding import EncodedPairs, encode_pairs
from seq2seq_jax.data.sources import load_pairs
from seq2seq_jax.data.text import Tokenizer, Tokenizers
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.training.optimizers import learning_rate, optimizer
from seq2seq_jax.training.step import Batch, TrainState, make_train_step
from seq2seq_jax.weights.pretrained import (
    Pretrained,
    from_encoder_decoder_configs,
    from_encoder_decoder_pretrained,
)

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
    pretrained = _with_tokens(pretrained, tokenizers.target)
    generation = pretrained.generation_config.replace(**config.generation)
    _check_lengths(pretrained.config, config.data, generation)
    if not config.random_weights:
        return pretrained.replace(generation_config=generation)
    sides = [json.loads(side.source_json) for side in (pretrained.config.encoder, pretrained.config.decoder)]
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


def _with_tokens(pretrained: Pretrained, tokenizer: Tokenizer) -> Pretrained:
    """Start, end and pad tokens that neither the config nor the checkpoint named, from the target's tokenizer.

    Raises:
      ValueError: for one that it lacks too.
    """
    config, found = pretrained.config, {}
    if config.decoder_start_token_id is None:
        found["decoder_start_token_id"] = tokenizer.start_id
    if not config.eos_token_ids:
        found["eos_token_ids"] = None if tokenizer.end_id is None else (tokenizer.end_id,)
    if config.pad_token_id is None:
        found["pad_token_id"] = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.end_id
    for name, value in found.items():
        if value is None:
            name = name.replace("eos_token_ids", "eos_token_id")
            raise ValueError(f"{name} is known neither to the decoder nor to its tokenizer; give warm_start.{name}")
        pretrained.report.note(f"{name} {value} comes from the target's tokenizer")
    return pretrained.replace(model=pretrained.model.clone(config=dataclasses.replace(config, **found)))


def training_model(model: EncoderDecoder, config: TrainConfig) -> tuple[EncoderDecoder, bool]:
    """The model as the training step applies it (dropout, recomputation), and whether any dropout acts."""
    pair = model.config
    if config.dropout is not None:
        rates = dict.fromkeys(DROPOUTS, config.dropout)
        sides = {role: dataclasses.replace(getattr(pair, role), **rates) for role in ("encoder", "decoder")}
        pair = dataclasses.replace(pair, **sides)
    acts = any(getattr(side, name) for side in (pair.encoder, pair.decoder) for name in DROPOUTS)
    return model.clone(config=pair, remat=config.remat), acts


def training_step(
    config: TrainConfig, model: EncoderDecoder, frozen: Any, num_steps: int
) -> tuple[Callable[[TrainState, Batch], tuple[TrainState, Any]], optax.GradientTransformation]:
    """The step of a run that the config describes, to be jitted with its state donated, and the optimizer.

    Args:
      frozen: of `frozen_parameters`.
    """
    tx = optimizer(config.optimizer, num_steps, frozen)
    schedule = learning_rate(config.optimizer, num_steps)
    model, dropout = training_model(model, config)
    options = {"label_smoothing": config.label_smoothing, "accumulation": config.batch.accumulation}
    return make_train_step(model, tx, schedule, seed=config.seed, dropout=dropout, frozen=frozen, **options), tx


def abstract_state(params: Any, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """`TrainState.create` without the numbers: what the optimizer keeps of a parameter's shape lies where the parameter
    lies, as zeros made like it do; the rest is on every device.

    Args:
      params: of `abstract_params`.
    """
    whole = NamedSharding(mesh, PartitionSpec())

    def placed(leaf, like=None):
        sharding = like.sharding if like is not None and like.shape == leaf.shape else whole
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state = jax.eval_shape(lambda p: TrainState.create(p, tx), params)
    opt_state = optax.tree_map_params(tx, placed, state.opt_state, params, transform_non_params=placed)
    return TrainState(placed(state.step), params, opt_state)
