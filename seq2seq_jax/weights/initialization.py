"""Initial values of parameters that no file holds; each way has a name."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from seq2seq_jax.config import EncoderDecoderConfig, TransformerConfig, nearest
from seq2seq_jax.models.layers import initial_value

CROSS_ATTENTION_INITS = ("normal", "zero", "self_attention", "identity", "aligned")
HEAD_INITS = ("normal", "identity")
# What warm-starting may leave out of a file; anything else that is missing is an error.
MAY_BE_NEW = re.compile(r"decoder/(layers/.*/cross_attention(_norm|_post_norm)?/|head/)|enc_to_dec_proj/")


def check_choices(config: EncoderDecoderConfig, cross_attention_init: str, head_init: str) -> None:
    """Raises ValueError for an unknown choice, or one whose conditions are not met; names one that works."""
    c = config.decoder
    for name, value, known in (
        ("cross_attention_init", cross_attention_init, CROSS_ATTENTION_INITS),
        ("head_init", head_init, HEAD_INITS),
    ):
        if value not in known:
            raise ValueError(f"{name} {value!r} is unknown: {nearest(value, known)}")
    if cross_attention_init == "zero" and c.norm_position == "post":
        raise ValueError(
            f"cross_attention_init='zero' promises to begin as the pretrained decoder, and in {c.family} the norm after"
            " the cross-attention breaks that; use 'identity', 'self_attention' or 'normal'"
        )
    if cross_attention_init in ("self_attention", "identity", "aligned") and c.cross_attention_size != c.hidden_size:
        raise ValueError(
            f"cross_attention_init={cross_attention_init!r} copies kernels of width {c.hidden_size}, and the"
            f" cross-attention reads states of width {c.cross_attention_size}; use 'normal'"
        )
    if cross_attention_init in ("identity", "aligned") and c.num_kv_heads * c.head_dim != c.hidden_size:
        raise ValueError(
            f"cross_attention_init={cross_attention_init!r} needs heads that fill the width, and {c.num_kv_heads} x"
            f" {c.head_dim} is not {c.hidden_size}; use 'self_attention' or 'normal'"
        )


class Alignment(NamedTuple):
    """A map from the encoder's embeddings to the decoder's: kernel [encoder width, decoder width], bias.

    shared: how many strings it was fitted on.
    """

    kernel: np.ndarray
    bias: np.ndarray
    shared: int


def align(
    encoder_table: np.ndarray,
    decoder_table: np.ndarray,
    encoder_strings: Mapping[str, int],
    decoder_strings: Mapping[str, int],
    *,
    intercept: bool = True,
) -> Alignment:
    """The least-squares map from one embedding table to the other, fitted on the strings that both vocabularies hold.

    Args:
      encoder_table, decoder_table: [rows, width], each side's own. encoder_strings, decoder_strings: string -> row.
      intercept: whether the map has a bias.

    Raises:
      ValueError: if there are too few such strings.
    """
    shared = sorted(encoder_strings.keys() & decoder_strings.keys())
    rows = [[strings[text] for text in shared] for strings in (encoder_strings, decoder_strings)]
    width = encoder_table.shape[1]
    if len(shared) <= width:
        raise ValueError(
            f"cross_attention_init='aligned' fits a map of width {width} on the strings that both vocabularies hold,"
            f" and they hold only {len(shared)} in common; use 'identity' or 'normal'"
        )
    ones = np.full((len(shared), 1), float(intercept))
    source = np.concatenate([encoder_table[rows[0]], ones], axis=1, dtype=np.float64)
    solution, *_ = np.linalg.lstsq(source, decoder_table[rows[1]].astype(np.float64), rcond=None)
    return Alignment(solution[:-1].astype(np.float32), solution[-1].astype(np.float32), len(shared))


def _aligned_value(path, shape, alignment: Alignment, projected: bool, read) -> tuple[np.ndarray, str]:
    """A parameter under "aligned": enc_to_dec_proj holds the map, or else the keys and values do."""
    part, leaf = path.split("/")[-2:]
    kernel, bias = alignment.kernel, alignment.bias
    if path.startswith("enc_to_dec_proj/"):
        return (kernel if leaf == "kernel" else bias), "aligned"
    own = path.replace("/cross_attention", "/self_attention")
    if part == "out":
        return (np.zeros(shape, np.float32) if leaf == "bias" else identity_kernel(shape)), "identity"
    if part == "value" and projected:
        return (np.zeros(shape, np.float32) if leaf == "bias" else identity_kernel(shape)), "identity"
    if part == "value":
        return (kernel if leaf == "kernel" else bias).reshape(shape), "aligned"
    if part == "key" and not projected:
        keys = read(own.replace("/bias", "/kernel"), (kernel.shape[1], *shape[-2:]))
        if leaf == "kernel":
            return np.einsum("ed,dhk->ehk", kernel, keys), "aligned"  # [encoder width, heads, head_dim]
        return np.einsum("d,dhk->hk", bias, keys) + read(own, shape), "aligned"  # [heads, head_dim]
    return read(own, shape), "self_attention"


def random_value(seed: int, path: str, shape: tuple[int, ...], config: TransformerConfig) -> np.ndarray:
    """float32 values that depend on the seed and the path alone."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
    return np.asarray(initial_value(key, path, shape, config))


def identity_kernel(shape: tuple[int, ...]) -> np.ndarray:
    """The identity as a kernel of `shape`: [e, h, d] or [h, d, e] with e = h * d, or [e, e]."""
    size = shape[0] if len(shape) == 2 or shape[0] > shape[-1] else shape[-1]
    return np.eye(size, dtype=np.float32).reshape(shape)


def new_value(
    path: str,
    shape: tuple[int, ...],
    config: TransformerConfig,
    *,
    seed: int,
    cross_attention_init: str,
    head_init: str,
    read: Callable[[str, tuple[int, ...]], np.ndarray],
    alignment: Alignment | None = None,
    projected: bool = False,
) -> tuple[np.ndarray, str]:
    """A parameter that no file holds, and the word for the report.

    Args:
      path: of one layer's parameter ("decoder/layers/layers_0/cross_attention/query/kernel"). shape: without a stack
        axis, in the true vocabulary.
      read: gives another parameter of the model by its path and shape.
      alignment: for "aligned"; projected: whether enc_to_dec_proj takes it.
    """
    if alignment is not None and ("/cross_attention" in path or path.startswith("enc_to_dec_proj/")):
        return _aligned_value(path, shape, alignment, projected, read)
    normal = random_value(seed, path, shape, config), "normal"
    if "/cross_attention" in path and cross_attention_init != "normal":
        leaf = path.rsplit("/cross_attention", 1)[1]
        if cross_attention_init == "zero":
            return (np.zeros(shape, np.float32), "zero") if leaf.startswith("/out/") else normal
        if cross_attention_init == "identity" and leaf.startswith(("/value/", "/out/")):
            value = np.zeros(shape, np.float32) if leaf.endswith("bias") else identity_kernel(shape)
            return value, "identity"
        return read(path.replace("/cross_attention", "/self_attention"), shape), "self_attention"
    if path == "decoder/head/transform/kernel" and head_init == "identity":
        return identity_kernel(shape), "identity"
    return normal
