"""New pairs: two pretrained checkpoints joined (Rothe et al. 2020), or two configs with random weights."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from seq2seq_jax.config import EncoderDecoderConfig
from seq2seq_jax.families import registry
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.models.layers import Dtype
from seq2seq_jax.pretrained.pair import Pretrained
from seq2seq_jax.text.tokenizer_files import plain_strings
from seq2seq_jax.weights import hf_config, initialization
from seq2seq_jax.weights.files import local_directory
from seq2seq_jax.weights.gguf_files import open_checkpoint, read_config
from seq2seq_jax.weights.loading import Loader
from seq2seq_jax.weights.report import Report
from seq2seq_jax.weights.special_tokens import new_pair_tokens
from seq2seq_jax.weights.tensor_names import SideCheckpoint, rooted_sides


def from_encoder_decoder_pretrained(
    encoder: str | os.PathLike,
    decoder: str | os.PathLike,
    *,
    tie_encoder_decoder: bool | str | tuple = False,
    cross_attention_init: str | None = None,
    head_init: str = "normal",
    seed: int = 0,
    decoder_start_token_id: int | None = None,
    pad_token_id: int | None = None,
    eos_token_id: int | tuple[int, ...] | None = None,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    mesh: Mesh | None = None,
    **overrides: Any,
) -> Pretrained:
    """Joins a pretrained encoder and a pretrained decoder (EncoderDecoderModel.from_encoder_decoder_pretrained).

    Args:
      encoder, decoder: directories or hub ids of the two checkpoints, or GGUF files of language models; a
        sequence-to-sequence checkpoint gives its half.
      tie_encoder_decoder: False, True (both sides share all that both have, with the encoder's values), "embeddings",
        or a tuple of `Alias`.
      cross_attention_init: initial values of cross-attention that the decoder's file lacks: "normal" (torch's), "zero",
        "self_attention", "identity", or "aligned" (identity across different widths and vocabularies). None: "normal"
        if torch's class has cross-attention or the decoder is post-norm, else "zero".
      head_init: initial values of a head transform that the file lacks: "normal" or "identity".
      seed: of the random values.
      decoder_start_token_id, pad_token_id, eos_token_id: None: from the decoder's config.json, else its tokenizer.
      overrides: encoder_<field> and decoder_<field>, Hugging Face's names. Also encoder_num_hidden_layers (the first
        layers), encoder_keep_layers (their numbers), encoder_max_position_embeddings (the table is resized),
        encoder_config (in place of the checkpoint's: a config of transformers, a mapping or a path), and the same for
        the decoder.
    """
    report = Report()
    options, hf, sides = hf_config.split_overrides(overrides), {}, {}
    for role, path_or_id in (("encoder", encoder), ("decoder", decoder)):
        hf[role], sides[role] = _open_side(role, path_or_id, options[role], report)
    tokens = (decoder_start_token_id, pad_token_id, eos_token_id)
    directory = sides["decoder"].checkpoint.directory
    config = new_pair(hf["encoder"], hf["decoder"], tie_encoder_decoder, mesh, tokens, directory, report)
    sides = {role: dataclasses.replace(sides[role], config=side) for role, side in hf_config.sides(config)}
    as_torch = registry.family_of(hf["decoder"]).torch_cross or config.decoder.norm_position == "post"
    method = cross_attention_init or ("normal" if as_torch else "zero")
    initialization.check_choices(config, method, head_init)
    model = EncoderDecoder(config, dtype=dtype, param_dtype=param_dtype)

    choices = {"seed": seed, "cross_attention_init": method, "head_init": head_init}

    def init_missing(path, shape, read):
        if not initialization.MAY_BE_NEW.match(path):
            return None
        return initialization.new_value(path, shape, config.decoder, read=read, **choices)

    loader = Loader(model, sides, report, init_missing, compare_ties=False)
    if method == "aligned":
        choices.update(alignment=_alignment(loader, report), projected=config.has_projection)
    params = loader.load(mesh, param_dtype)
    new_head = [entry.name for entry in report.of("initialised", "decoder") if entry.name.startswith("decoder/head/")]
    if new_head:
        report.note(f"{directory} has no complete language-model head; {', '.join(new_head)} begin untrained")
    return Pretrained(model, params, report=report, passthrough=loader.passthrough, dtypes=loader.dtypes)


def _open_side(
    role: str, path_or_id: str | os.PathLike, options: dict[str, Any], report: Report
) -> tuple[dict[str, Any], SideCheckpoint]:
    """A side's config.json with the caller's `options`, and its checkpoint, which `report` gets notes about."""
    path = local_directory(path_or_id)
    hf, checkpoint = read_config(path), open_checkpoint(path, report.note)
    config = hf_config.side_from_hf(hf, role)
    side = SideCheckpoint(role, config, checkpoint, "", tuple(range(config.stored_layers)))
    checkpoint = rooted_sides(checkpoint, hf, {role: side}, role, report)
    if (given := options.pop("config", None)) is not None:
        given = hf_config.given_config(given, role)
        if given["model_type"] != hf["model_type"]:
            raise ValueError(
                f"{role}_config is a {given['model_type']!r} config, and {path} holds a {hf['model_type']!r} model;"
                " give the config of that"
            )
        hf = given
    hf = hf_config.with_tensors(hf, checkpoint) if role == "decoder" else hf
    hf, layers = hf_config.overridden(hf, role, options, config.stored_layers)
    side = dataclasses.replace(
        side,
        checkpoint=checkpoint,
        file_layers=layers,
        truncated=len(layers) < config.stored_layers,
        resize_positions=hf_config.resizes(options),
    )
    return hf, side


def from_encoder_decoder_configs(
    encoder_config: Mapping[str, Any] | str | os.PathLike | Any,
    decoder_config: Mapping[str, Any] | str | os.PathLike | Any,
    *,
    tie_encoder_decoder: bool | str | tuple = False,
    seed: int = 0,
    decoder_start_token_id: int | None = None,
    pad_token_id: int | None = None,
    eos_token_id: int | tuple[int, ...] | None = None,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    mesh: Mesh | None = None,
) -> Pretrained:
    """A pair with random weights (EncoderDecoderConfig.from_encoder_decoder_configs).

    Args:
      encoder_config, decoder_config: of each side the content of a config.json, with at least `model_type`; the path
        of such a file; a config of transformers (BertConfig ...); or a TransformerConfig. Fields that are left out have
        the torch class's defaults.
      tie_encoder_decoder, decoder_start_token_id, pad_token_id, eos_token_id: as in from_encoder_decoder_pretrained.
      seed: of the weights.

    Raises:
      ValueError: for a field that the config class does not have; says the nearest.
    """
    hf = [hf_config.given_config(c, r) for r, c in (("encoder", encoder_config), ("decoder", decoder_config))]
    report = Report()
    tokens = (decoder_start_token_id, pad_token_id, eos_token_id)
    config = new_pair(*hf, tie_encoder_decoder, mesh, tokens, None, report)
    sides = {r: SideCheckpoint(r, c, None, "", tuple(range(c.stored_layers))) for r, c in hf_config.sides(config)}
    model = EncoderDecoder(config, dtype=dtype, param_dtype=param_dtype)

    def init_missing(path, shape, read):
        side = config.encoder if path.startswith("encoder/") else config.decoder
        return initialization.random_value(seed, path, shape, side), "normal"

    loader = Loader(model, sides, report, init_missing, compare_ties=False)
    params = loader.load(mesh, param_dtype)
    return Pretrained(model, params, report=report)


def _alignment(loader: Loader, report: Report) -> initialization.Alignment:
    """The map between the sides' token embeddings, from their tokenizers' strings."""
    tables, strings = [], []
    for role, side in loader.sides.items():
        if side.config.embedding_size != side.config.hidden_size:
            raise ValueError(
                f"cross_attention_init='aligned' needs token embeddings as wide as the states, and the {role}'s are"
                f" {side.config.embedding_size}, not {side.config.hidden_size}; use 'identity' or 'normal'"
            )
        tables.append(loader.token_table(role).astype(np.float32))
        strings.append(plain_strings(side.checkpoint.directory, side.config.source, side.config.vocab_size))
    config = loader.model.config
    intercept = config.has_projection or config.decoder.attention_bias
    alignment = initialization.align(*tables, *strings, intercept=intercept)
    report.note(f"cross-attention is aligned by {alignment.shared} strings that both vocabularies hold")
    return alignment


def new_pair(
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any],
    tie: bool | str | tuple,
    mesh: Mesh | None,
    tokens: tuple,
    directory: Path | None,
    report: Report,
) -> EncoderDecoderConfig:
    """The config of a new pair.

    Args:
      encoder, decoder: the config.json of each side. tie: tie_encoder_decoder.
      tokens: the caller's start, pad and end tokens, None where not given. directory: the decoder's checkpoint.
    """
    top = {"model_type": hf_config.PAIR_TYPES[0], "is_encoder_decoder": True, "encoder": encoder, "decoder": decoder}
    config = hf_config.pair_from_hf(top, mesh, tie=tie)
    tokens = new_pair_tokens(registry.with_defaults(decoder), directory, *tokens, report)
    return dataclasses.replace(config, **tokens)
