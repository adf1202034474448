"""Pretrained pairs: from two checkpoints, from one, from configs; and back to a directory that torch loads."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from safetensors.numpy import load_file, save_file

from seq2seq_jax import families
from seq2seq_jax.config import EncoderDecoderConfig, GenerationConfig
from seq2seq_jax.decoding.generate import GenerateOutput, generate
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.models.layers import Dtype
from seq2seq_jax.parallel.multihost import barrier, is_first
from seq2seq_jax.weights import hf_config, initialization, native
from seq2seq_jax.weights.files import Checkpoint, local_directory, read_json, write_json, write_safetensors
from seq2seq_jax.weights.loading import Loader, Side, torch_tensors
from seq2seq_jax.weights.report import Report

EXTRAS, ASIDE = "seq2seq_jax.json", "aside.safetensors"


@dataclass(frozen=True)
class Pretrained:
    """A model with its parameters and all that is needed to use it and to write it back.

    Attributes:
      model: the linen module. params: its once-stored parameters.
      generation_config: the checkpoint's own way of generating.
      report: what became of every tensor.
      aside: tensors that no forward pass reads, by torch name. dtypes: the source's dtype of each torch tensor.
      generation_source: the generation_config.json that generation_config came from.
    """

    model: EncoderDecoder
    params: Mapping[str, Any]
    generation_config: GenerationConfig = field(default_factory=GenerationConfig)
    report: Report = field(default_factory=Report)
    aside: Mapping[str, np.ndarray] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    generation_source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> EncoderDecoderConfig:
        return self.model.config

    def generate(self, input_ids, attention_mask=None, generation_config=None, **options) -> GenerateOutput:
        """`seq2seq_jax.generate` with this pair's model, parameters and generation_config."""
        settings = self.generation_config if generation_config is None else generation_config
        return generate(self.model, self.params, input_ids, attention_mask, settings, **options)

    def replace(self, **changes: Any) -> Pretrained:
        """A copy with fields replaced, such as `params` after training."""
        return dataclasses.replace(self, **changes)


def from_pretrained(
    path_or_id: str | os.PathLike,
    *,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    mesh: Mesh | None = None,
    params_directory: str | os.PathLike | None = None,
) -> Pretrained:
    """Loads a pair that torch's EncoderDecoderModel, `save_pretrained` or `save_orbax` wrote.

    Args:
      path_or_id: a directory, or a hub id.
      params_directory: a checkpoint of a run (`<workdir>/checkpoints/<step>`), if `path_or_id` is the run's `model/`.
      dtype: of the computation. param_dtype: of the parameters.
      mesh: each device gets its part of the parameters only.

    Raises:
      FileNotFoundError, ValueError: naming the file, tensor or field at fault and what to do.
    """
    directory = local_directory(path_or_id)
    hf = read_json(directory / "config.json")
    if hf.get("model_type") not in hf_config.PAIR_TYPES:
        raise ValueError(
            f"{directory / 'config.json'} is of model_type {hf.get('model_type')!r}, not an encoder-decoder pair; to"
            " join it with another checkpoint, use from_encoder_decoder_pretrained"
        )
    report = Report()
    generation_file = directory / "generation_config.json"
    generation_source = read_json(generation_file) if generation_file.exists() else {}
    generation = hf_config.merged_generation(hf, generation_source)
    config = hf_config.pair_from_hf(hf, mesh)
    config = dataclasses.replace(config, **hf_config.pair_tokens(config, hf, generation, report))
    model = EncoderDecoder(config, dtype=dtype, param_dtype=param_dtype)
    if params_directory is not None or (directory / native.PARAMS).is_dir():
        params = native.restore_params(Path(params_directory or directory), model, mesh=mesh, dtype=param_dtype)
        extras = read_json(directory / EXTRAS)
        for path in flatten_dict(params, sep="/"):
            report.add(path.split("/")[0], path, "copied")
        aside = load_file(directory / ASIDE) if (directory / ASIDE).exists() else {}
        return Pretrained(model, params, generation, report, aside, extras["dtypes"], generation_source)
    checkpoint = Checkpoint(directory)
    stray = [n for n in checkpoint if not n.startswith(("encoder.", "decoder.", "enc_to_dec_proj."))]
    if stray:
        raise ValueError(f"{directory}: nothing is known about the tensor {stray[0]!r} in an encoder-decoder pair")
    sides = {r: Side(r, c, checkpoint, f"{r}.", tuple(range(c.num_layers))) for r, c in hf_config.sides(config)}
    loader = Loader(model, sides, report, lambda path, shape, read: None, compare_ties=True)
    params = loader.load(mesh, param_dtype)
    return Pretrained(model, params, generation, report, loader.aside, loader.dtypes, generation_source)


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
      encoder, decoder: directories or hub ids of the two checkpoints; whole sequence-to-sequence checkpoints give their
        half.
      tie_encoder_decoder: False, True (all that both sides have is stored once, from the encoder), "embeddings", or
        aliases.
      cross_attention_init: how absent cross-attention begins: "normal" (torch's; None means this), "zero",
        "self_attention" or "identity". head_init: how an absent head transform begins: "normal" or "identity".
      seed: of the random ones.
      decoder_start_token_id, pad_token_id, eos_token_id: None: from the decoder's config.json, else its tokenizer.
      overrides: encoder_<field> and decoder_<field>, Hugging Face's names; also encoder_num_hidden_layers (the first
        layers), encoder_keep_layers (their numbers), encoder_max_position_embeddings (the table is resized), and the
        same for the decoder.
    """
    report = Report()
    paths = {"encoder": local_directory(encoder), "decoder": local_directory(decoder)}
    hf = {role: read_json(path / "config.json") for role, path in paths.items()}
    options = hf_config.split_overrides(overrides)
    keeps, depths = {}, {}
    for role, source in hf.items():
        depths[role] = families.from_hf(source, role).num_layers
        hf[role], keeps[role] = hf_config.overridden(source, role, options[role], depths[role])
    tokens = (decoder_start_token_id, pad_token_id, eos_token_id)
    config = _new_pair(hf["encoder"], hf["decoder"], tie_encoder_decoder, mesh, tokens, paths["decoder"], report)
    method = cross_attention_init or "normal"
    initialization.check_choices(config, method, head_init)

    sides = {}
    for role, side in hf_config.sides(config):
        cut, resize = len(keeps[role]) < depths[role], hf_config.resizes(options[role])
        sides[role] = Side(role, side, Checkpoint(paths[role]), "", keeps[role], cut=cut, resize=resize)
    model = EncoderDecoder(config, dtype=dtype, param_dtype=param_dtype)

    def new_value(path, shape, read):
        if not initialization.MAY_BE_NEW.match(path):
            return None
        return initialization.new_value(
            path, shape, config.decoder, seed=seed, cross_attention_init=method, head_init=head_init, read=read
        )

    loader = Loader(model, sides, report, new_value, compare_ties=False)
    params = loader.load(mesh, param_dtype)
    return Pretrained(model, params, GenerationConfig(), report, loader.aside, loader.dtypes)


def from_encoder_decoder_configs(
    encoder_config: Mapping[str, Any] | str | os.PathLike,
    decoder_config: Mapping[str, Any] | str | os.PathLike,
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
      encoder_config, decoder_config: config.json contents, with at least `model_type`, or paths to such files; fields
        left out have the torch class's defaults.
    """
    hf = [dict(c) if isinstance(c, Mapping) else read_json(Path(c)) for c in (encoder_config, decoder_config)]
    report = Report()
    tokens = (decoder_start_token_id, pad_token_id, eos_token_id)
    config = _new_pair(*hf, tie_encoder_decoder, mesh, tokens, None, report)
    sides = {r: Side(r, c, None, "", tuple(range(c.num_layers))) for r, c in hf_config.sides(config)}
    model = EncoderDecoder(config, dtype=dtype, param_dtype=param_dtype)

    def new_value(path, shape, read):
        side = config.encoder if path.startswith("encoder/") else config.decoder
        return initialization.random_value(seed, path, shape, side), "normal"

    loader = Loader(model, sides, report, new_value, compare_ties=False)
    params = loader.load(mesh, param_dtype)
    return Pretrained(model, params, GenerationConfig(), report)


def _new_pair(encoder, decoder, tie, mesh, tokens, directory, report) -> EncoderDecoderConfig:
    """The config of a pair that did not exist before."""
    top = {"model_type": hf_config.PAIR_TYPES[0], "is_encoder_decoder": True, "encoder": encoder, "decoder": decoder}
    config = hf_config.pair_from_hf(top, mesh, tie=tie)
    found = hf_config.derive_tokens(families.with_defaults(decoder), directory, *tokens, report)
    return dataclasses.replace(config, **found)


def save_pretrained(
    path: str | os.PathLike,
    pretrained: Pretrained,
    *,
    dtype: Dtype | None = None,
    max_shard_size: int | str = "5GB",
    tokenizer: Any = None,
    target_tokenizer: Any = None,
) -> None:
    """Writes a directory that torch's EncoderDecoderModel.from_pretrained and `from_pretrained` load.

    Args:
      dtype: of the tensors; None: each as in its source (new ones as most of them, float32 if all are new).
      max_shard_size: bytes, or "5GB"; larger checkpoints are split, with an index.
      tokenizer, target_tokenizer: `Tokenizer`s to write beside (the target's in `target_tokenizer/`).
    """
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    usual = Counter(pretrained.dtypes.values()).most_common(1)
    usual = usual[0][0] if usual else "float32"

    def tensors():
        for name, make in torch_tensors(pretrained.model, pretrained.params):
            yield name, make().astype(jnp.dtype(dtype if dtype is not None else pretrained.dtypes.get(name, usual)))
        for name, array in pretrained.aside.items():
            yield name, array if dtype is None else array.astype(jnp.dtype(dtype))

    if is_first():
        write_safetensors(directory, tensors(), max_shard_size)
        _write_configs(directory, pretrained, tokenizer, target_tokenizer)
    else:
        for _ in tensors():  # gathering them takes every process
            pass
    barrier("save_pretrained")


def save_orbax(
    path: str | os.PathLike, pretrained: Pretrained, *, tokenizer: Any = None, target_tokenizer: Any = None
) -> None:
    """Writes an Orbax / TensorStore directory that `from_pretrained` loads: sharded in, sharded out, no torch names."""
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    native.save_params(directory, pretrained.config, pretrained.params)
    save_frame(directory, pretrained, tokenizer=tokenizer, target_tokenizer=target_tokenizer)


def save_frame(
    path: str | os.PathLike, pretrained: Pretrained, *, tokenizer: Any = None, target_tokenizer: Any = None
) -> None:
    """Writes all of `save_orbax` but the parameters."""
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    if is_first():
        write_json(directory / EXTRAS, {"dtypes": dict(pretrained.dtypes)})
        if pretrained.aside:
            save_file({name: np.ascontiguousarray(a) for name, a in pretrained.aside.items()}, directory / ASIDE)
        _write_configs(directory, pretrained, tokenizer, target_tokenizer)
    barrier("save_frame")


def _write_configs(directory: Path, pretrained: Pretrained, tokenizer: Any, target_tokenizer: Any) -> None:
    """Configs and tokenizers."""
    generation = hf_config.generation_file(
        pretrained.generation_config, pretrained.config, pretrained.generation_source
    )
    write_json(directory / "config.json", hf_config.pair_to_hf(pretrained.config))
    write_json(directory / "generation_config.json", generation)
    if tokenizer is not None:
        tokenizer.save(directory)
    if target_tokenizer is not None:
        target_tokenizer.save(directory / "target_tokenizer")
