"""A pair, or a sequence-to-sequence model of one class, from its directory, a run's workdir or the hub."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from seq2seq_jax.config import EncoderDecoderConfig, GenerationConfig
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.models.layers import Dtype
from seq2seq_jax.pretrained import orbax
from seq2seq_jax.pretrained.generation import read_generation
from seq2seq_jax.pretrained.pair import Pretrained
from seq2seq_jax.pretrained.saving import EXTRAS, PASSTHROUGH
from seq2seq_jax.weights import hf_config
from seq2seq_jax.weights.files import local_directory, read_json
from seq2seq_jax.weights.gguf_files import find_gguf, open_checkpoint, read_config
from seq2seq_jax.weights.loading import Loader
from seq2seq_jax.weights.report import Report
from seq2seq_jax.weights.special_tokens import saved_tokens
from seq2seq_jax.weights.tensor_names import one_file, rooted_sides
from seq2seq_jax.weights.workdir import find_model


def from_pretrained(
    path_or_id: str | os.PathLike,
    *,
    step: int | None = None,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    mesh: Mesh | None = None,
    generation_config: GenerationConfig | Mapping[str, Any] | Any = None,
) -> Pretrained:
    """Loads a pair that torch's EncoderDecoderModel, `save_pretrained`, `save_orbax` or a run wrote, or a
    sequence-to-sequence model of one class (BART, T5 ...).

    Args:
      path_or_id: a directory, a run's workdir (its export, or else its best checkpoint), or a hub id.
      step: the checkpoint of a workdir.
      dtype: of the computation. param_dtype: of the parameters.
      mesh: each device gets its part of the parameters only.
      generation_config: in place of the directory's generation_config.json (its token ids fill what this leaves out): a
        GenerationConfig, a mapping with such a file's fields, or a transformers.GenerationConfig. What a file says is
        read as transformers 5 acts on it; what is left out or read otherwise stands in the report.

    Raises:
      FileNotFoundError, ValueError: naming the file, tensor or field at fault and what to do.
    """
    path, params_directory = find_model(path_or_id, step)
    directory = local_directory(path)
    hf, report = read_config(directory), Report()
    generation, generation_source = read_generation(hf, directory / "generation_config.json", generation_config, report)
    if params_directory is None and (directory / orbax.PARAMS).is_dir():
        params_directory = directory
    checkpoint = None if params_directory else open_checkpoint(directory, report.note)
    config = _pair_config(hf, mesh, directory)
    if checkpoint is not None:
        checkpoint = rooted_sides(checkpoint, hf, one_file(config, checkpoint), "pair", report)
        hf = hf_config.with_tensors(hf, checkpoint)
        config = _pair_config(hf, mesh, directory)
    config = dataclasses.replace(config, **saved_tokens(config, hf, generation, report))
    model = EncoderDecoder(config, dtype=dtype, param_dtype=param_dtype)
    if checkpoint is None:
        params = orbax.restore_params(params_directory, model, mesh=mesh, dtype=param_dtype)
        for parameter in flatten_dict(params, sep="/"):
            report.add(parameter.split("/")[0], parameter, "copied")
        dtypes, passthrough = read_json(directory / EXTRAS)["dtypes"], {}
        if (directory / PASSTHROUGH).exists():
            from safetensors.numpy import load_file

            passthrough = load_file(directory / PASSTHROUGH)
        return Pretrained(model, params, generation, report, passthrough, dtypes, generation_source)
    unknown = [n for n in checkpoint if not n.startswith(("encoder.", "decoder.", "enc_to_dec_proj."))]
    if unknown and config.is_pair:
        raise ValueError(f"{directory}: nothing is known about the tensor {unknown[0]!r} in an encoder-decoder pair")

    def init_missing(path, shape, read):
        if path == "decoder/head/bias" and not config.is_pair:  # older files may lack final_logits_bias
            return np.zeros(shape, np.float32), "zero"
        return None

    loader = Loader(model, one_file(config, checkpoint), report, init_missing, compare_ties=True)
    params = loader.load(mesh, param_dtype)
    return Pretrained(model, params, generation, report, loader.passthrough, loader.dtypes, generation_source)


def _pair_config(hf: Mapping[str, Any], mesh: Mesh | None, directory: Path) -> EncoderDecoderConfig:
    try:
        return hf_config.pair_from_hf(hf, mesh)
    except ValueError as error:
        raise ValueError(f"{find_gguf(directory) or directory / 'config.json'}: {error}") from None
