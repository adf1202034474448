"""A pair, or a side of it, written: to a directory that torch loads, or to Orbax."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from seq2seq_jax.families import registry
from seq2seq_jax.models.layers import Dtype
from seq2seq_jax.parallel.multihost import barrier, is_first
from seq2seq_jax.pretrained import orbax
from seq2seq_jax.text.tokenizer import TARGET_FOLDER, check_tokenizer, save_tokenizer
from seq2seq_jax.weights import hf_config
from seq2seq_jax.weights.files import write_json, write_safetensors
from seq2seq_jax.weights.loading import export_pieces, torch_tensors

if TYPE_CHECKING:
    from seq2seq_jax.pretrained.pair import Pretrained

# Beside an Orbax checkpoint: the dtypes of its source, and the tensors that no forward pass reads.
EXTRAS, ASIDE = "seq2seq_jax.json", "aside.safetensors"


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
      tokenizer, target_tokenizer: `Tokenizer`s or fast tokenizers of transformers to write beside (the target's in
        `target_tokenizer/`).
    """
    _check_tokenizers(tokenizer, target_tokenizer)
    directory = Path(path)
    _write_tensors(directory, _tensors(pretrained, dtype), max_shard_size)
    if is_first():
        _write_configs(directory, pretrained, tokenizer, target_tokenizer)
    barrier("save_pretrained")


def save_decoder(
    path: str | os.PathLike,
    pretrained: Pretrained,
    *,
    dtype: Dtype | None = None,
    max_shard_size: int | str = "5GB",
    tokenizer: Any = None,
) -> None:
    """Writes a pair's decoder alone, for torch's class of it (AutoModelForCausalLM).

    Cross-attention is written only where that class has it.

    Raises:
      ValueError: if torch has no such class: half of a sequence-to-sequence model, or the decoder of T5 or T5Gemma 2.
    """
    _check_tokenizers(tokenizer)
    side = pretrained.config.decoder
    family = registry.FAMILIES[side.family]
    if not pretrained.config.is_pair or family.head_by_file or side.merged_attention:
        raise ValueError(
            f"torch has no causal language model of {side.family}'s decoder alone; write the whole with save_pretrained"
        )
    left_out = set()
    if not family.torch_cross:
        pieces = export_pieces(pretrained.config).items()
        left_out = {piece.names[0] for path, piece in pieces if "/cross_attention" in path}
    flags = hf_config.SIDE_FLAGS["decoder"] if family.torch_cross else {}
    config = {**registry.to_hf(side, "decoder"), **flags}
    name_of = lambda name: None if name in left_out else _without("decoder.", name)
    _save_side(Path(path), pretrained, name_of, config, dtype, max_shard_size, tokenizer)
    barrier("save_decoder")


def save_encoder(
    path: str | os.PathLike,
    pretrained: Pretrained,
    *,
    dtype: Dtype | None = None,
    max_shard_size: int | str = "5GB",
    tokenizer: Any = None,
) -> None:
    """Writes an encoder alone, for torch's class of it (AutoModel; T5EncoderModel, MT5EncoderModel, UMT5EncoderModel).

    Tensors that no forward pass of the pair reads, such as a pooler, are written too. A causal language model that was
    made bidirectional is so for `from_encoder_decoder_pretrained` only: most of torch's classes do not read
    use_bidirectional_attention.

    Raises:
      ValueError: for the half of a sequence-to-sequence model that is no model of its own, such as BART's.
    """
    _check_tokenizers(tokenizer)
    side = pretrained.config.encoder
    family = registry.FAMILIES[side.family]
    config = {**registry.to_hf(side, "encoder"), **hf_config.SIDE_FLAGS["encoder"]}
    outer, names = ("encoder." if pretrained.config.is_pair else ""), {}
    if family.whole is not None:
        if family.prefixes["encoder"][0] != "encoder.":  # T5's, as its class of the encoder has them
            raise ValueError(
                f"{side.family}'s encoder alone is not written, being half of a model; write all with save_pretrained"
            )
        names = {"encoder.embed_tokens.weight": "shared.weight", "shared.weight": "shared.weight"}
        kind = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}[config["model_type"]]
        config |= {"architectures": [f"{kind}EncoderModel"], "is_encoder_decoder": False}

    def name_of(name: str) -> str | None:
        inner = _without(outer, name)
        if inner is None or family.whole is None or inner in names:
            return names.get(inner, inner)
        return inner if inner.startswith("encoder.") else None

    _save_side(Path(path), pretrained, name_of, config, dtype, max_shard_size, tokenizer)
    barrier("save_encoder")


def _without(prefix: str, name: str) -> str | None:
    """The name behind the prefix; None: it has another."""
    return name.removeprefix(prefix) if name.startswith(prefix) else None


def _save_side(
    directory: Path,
    pretrained: Pretrained,
    name_of: Callable[[str], str | None],
    config: Mapping[str, Any],
    dtype: Dtype | None,
    max_shard_size: int | str,
    tokenizer: Any,
) -> None:
    """Writes one side: the pair's tensors that have a name there, the config.json and the tokenizer."""
    named = ((name_of(name), array) for name, array in _tensors(pretrained, dtype))
    _write_tensors(directory, ((name, array) for name, array in named if name is not None), max_shard_size)
    if is_first():
        write_json(directory / "config.json", config)
        save_tokenizer(tokenizer, directory)


def _tensors(pretrained: Pretrained, dtype: Dtype | None) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a pair's file, in `dtype`, or in its own of the source (new ones: as most of them)."""
    pretrained.check_stored("is not written")
    usual = Counter(pretrained.dtypes.values()).most_common(1)
    usual = usual[0][0] if usual else "float32"
    for name, make in torch_tensors(pretrained.model, pretrained.params):
        yield name, make().astype(jnp.dtype(dtype if dtype is not None else pretrained.dtypes.get(name, usual)))
    for name, array in pretrained.aside.items():
        yield name, array if dtype is None else array.astype(jnp.dtype(dtype))


def _write_tensors(directory: Path, tensors: Iterator[tuple[str, np.ndarray]], max_shard_size: int | str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if is_first():
        write_safetensors(directory, tensors, max_shard_size)
    else:
        for _ in tensors:  # gathering them takes every process
            pass


def save_orbax(
    path: str | os.PathLike, pretrained: Pretrained, *, tokenizer: Any = None, target_tokenizer: Any = None
) -> None:
    """Writes an Orbax / TensorStore directory that `from_pretrained` loads: sharded in, sharded out, no torch names."""
    _check_tokenizers(tokenizer, target_tokenizer)
    pretrained.check_stored("is not written")
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    orbax.save_params(directory, pretrained.config, pretrained.params)
    save_frame(directory, pretrained, tokenizer=tokenizer, target_tokenizer=target_tokenizer)


def save_frame(
    path: str | os.PathLike, pretrained: Pretrained, *, tokenizer: Any = None, target_tokenizer: Any = None
) -> None:
    """Writes all of `save_orbax` but the parameters."""
    _check_tokenizers(tokenizer, target_tokenizer)
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    if is_first():
        write_json(directory / EXTRAS, {"dtypes": dict(pretrained.dtypes)})
        if pretrained.aside:
            save_file({name: np.ascontiguousarray(a) for name, a in pretrained.aside.items()}, directory / ASIDE)
        _write_configs(directory, pretrained, tokenizer, target_tokenizer)
    barrier("save_frame")


def _check_tokenizers(tokenizer: Any, target_tokenizer: Any = None) -> None:
    """Before anything is written."""
    check_tokenizer(tokenizer)
    check_tokenizer(target_tokenizer, "target_tokenizer")


def _write_configs(directory: Path, pretrained: Pretrained, tokenizer: Any, target_tokenizer: Any) -> None:
    """Configs and tokenizers."""
    generation = hf_config.generation_file(
        pretrained.generation_config, pretrained.config, pretrained.generation_source
    )
    write_json(directory / "config.json", hf_config.pair_to_hf(pretrained.config))
    write_json(directory / "generation_config.json", generation)
    save_tokenizer(tokenizer, directory)
    save_tokenizer(target_tokenizer, directory / TARGET_FOLDER)
