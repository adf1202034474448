"""How parameters begin that no file holds: a choice with a name."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable

import jax
import numpy as np

from seq2seq_jax.config import EncoderDecoderConfig, TransformerConfig, nearest
from seq2seq_jax.models.layers import initial_value

CROSS_ATTENTION_INITS = ("normal", "zero", "self_attention", "identity")
HEAD_INITS = ("normal", "identity")
# What warm-starting may leave out of a file; anything else that is missing is an error.
MAY_BE_NEW = re.compile(r"decoder/(layers/.*/cross_attention(_norm)?/|head/)|enc_to_dec_proj/")


def check_choices(config: EncoderDecoderConfig, cross_attention_init: str, head_init: str) -> None:
    """An unknown choice, or one whose conditions are not met, is an error that names one that works."""
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
    if cross_attention_init in ("self_attention", "identity") and c.cross_attention_size != c.hidden_size:
        raise ValueError(
            f"cross_attention_init={cross_attention_init!r} copies kernels of width {c.hidden_size}, and the"
            f" cross-attention reads states of width {c.cross_attention_size}; use 'normal'"
        )
    if cross_attention_init == "identity" and c.num_heads * c.head_dim != c.hidden_size:
        raise ValueError(
            f"cross_attention_init='identity' needs heads that fill the width, and {c.num_heads} x {c.head_dim} is not"
            f" {c.hidden_size}; use 'self_attention' or 'normal'"
        )


def random_value(seed: int, path: str, shape: tuple[int, ...], config: TransformerConfig) -> np.ndarray:
    """float32 values that depend on the seed and the path alone."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
    return np.asarray(initial_value(key, path, shape, config))


def identity_kernel(shape: tuple[int, ...]) -> np.ndarray:
    """The identity on the last dimensions' product, seen as a kernel of `shape` ([e, h, d], [h, d, e] or [e, e])."""
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
    read: Callable[[str], np.ndarray],
) -> tuple[np.ndarray, str]:
    """A parameter that no file holds, and the word for the report.

    Args:
      path: of one layer's parameter ("decoder/layers/layers_0/cross_attention/query/kernel"). shape: without a stack
        axis, in the true vocabulary.
      read: gives another parameter of the model by its path.
    """
    normal = random_value(seed, path, shape, config), "normal"
    if "/cross_attention" in path and cross_attention_init != "normal":
        leaf = path.rsplit("/cross_attention", 1)[1]
        if cross_attention_init == "zero":
            return (np.zeros(shape, np.float32), "zero") if leaf.startswith("/out/") else normal
        if cross_attention_init == "identity" and leaf.startswith(("/value/", "/out/")):
            value = np.zeros(shape, np.float32) if leaf.endswith("bias") else identity_kernel(shape)
            return value, "identity"
        return read(path.replace("/cross_attention", "/self_attention")), "self_attention"
    if path == "decoder/head/transform/kernel" and head_init == "identity":
        return identity_kernel(shape), "identity"
    return normal
