"""Attention by fused kernels, which hold no scores: cuDNN's on a GPU, splash attention on a TPU.

What a kernel cannot do is an error that says so; nothing falls back.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec

from seq2seq_jax.config import ATTENTION_IMPLS, KERNEL_LENGTHS, TransformerConfig, nearest
from seq2seq_jax.parallel.axes import current_mesh, fitting_spec

# Of queries and of keys in splash attention: the largest that divides the length.
BLOCKS = (512, 256, KERNEL_LENGTHS["splash"])
INTERPRET = False  # tests run splash attention on a CPU


class SegmentIds(NamedTuple):
    """A mask by numbers: a query sees the keys that have its own. Causality and windows come on top.

    Attributes:
      queries: int32 [batch, queries]. keys: int32 [batch, keys], -1 where there is no token.
    """

    queries: jax.Array
    keys: jax.Array


def takes_segment_ids(attention_impl: str) -> bool:
    """Whether the masks that this implementation reads are `SegmentIds`; the others read boolean arrays."""
    return attention_impl == "splash"


def segment_ids(queries: tuple, keys: tuple, key_mask=None, query_packs=None, key_packs=None) -> SegmentIds:
    """Those of arrays of the shapes `queries` and `keys`, of the tokens' mask and of packs (None: all is one pack)."""
    numbers = lambda packs, shape: jnp.zeros(shape, jnp.int32) if packs is None else jnp.asarray(packs, jnp.int32)
    of_keys = numbers(key_packs, keys)
    if key_mask is not None:
        of_keys = jnp.where(jnp.asarray(key_mask).astype(bool), of_keys, -1)
    return SegmentIds(numbers(query_packs, queries), of_keys)


def check_kernel(name: str, config: TransformerConfig, q: jax.Array, k: jax.Array, *, dropout: bool, bias: bool):
    """A ValueError that says what the kernel `name` cannot do of this attention, and what helps."""
    if name not in ATTENTION_IMPLS:
        raise ValueError(f"attention_impl {name!r} is unknown: {nearest(name, ATTENTION_IMPLS)}")
    lengths, width, cudnn, needed = (q.shape[2], k.shape[2]), q.shape[3], name == "cudnn", f"{config.family} needs it"
    multiple = KERNEL_LENGTHS[name]
    faults = (
        (dropout, "attention dropout", "set attention_dropout to 0"),
        (bias, "a bias on the scores", needed),
        (name == "splash" and config.merged_attention, "self-attention and cross-attention in one", needed),
        (cudnn and config.attention_softcap is not None, "a soft cap on the scores", needed),
        (cudnn and (width % 8 or width > 256), f"a head_dim of {width}", "it takes multiples of 8 up to 256"),
        (cudnn and q.dtype.itemsize != 2, f"{q.dtype}", "compute in bfloat16"),
        (
            any(n % multiple for n in lengths),
            f"lengths {lengths}",
            f"pad to multiples of {multiple} (a run's batch.length_multiple)",
        ),
    )
    for found, what, remedy in faults:
        if found:
            raise ValueError(f"attention_impl {name!r} cannot do {what}: {remedy}, or give 'xla'")


def fused_attention(name, q, k, v, mask, *, scale: float, causal: bool, window: tuple | None, softcap: float | None):
    """`attend` by the kernel `name`; the output alone.

    For cudnn the mask hides all that is hidden; for splash it is `SegmentIds`, to which causal and window add. Where a
    query sees nothing, the output is 0 by cudnn, and by splash a mean of no meaning.
    """
    if name == "splash":
        return _splash(q * scale, k, v, mask, causal=causal, window=window, softcap=softcap)
    swapped = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    full = None if mask is None else jnp.broadcast_to(mask, (q.shape[0], 1, q.shape[2], k.shape[2]))
    y = jax.nn.dot_product_attention(*swapped, mask=full, scale=scale, implementation="cudnn")
    y = jnp.swapaxes(y, 1, 2)
    return y if mask is None else jnp.where(jnp.any(full, -1, keepdims=True), y, 0.0)


def _splash(q, k, v, mask: SegmentIds, *, causal: bool, window: tuple | None, softcap: float | None) -> jax.Array:
    shape = (q.shape[2], k.shape[2])
    sight = splash_attention.CausalMask(shape) if causal else splash_attention.FullMask(shape)
    if window is not None:
        sight = splash_attention.LocalMask(shape, (window[0], 0 if causal else window[1]), 0)
    of_q, of_k = (next(block for block in BLOCKS if length % block == 0) for length in shape)
    sizes = {f"block_q{step}": of_q for step in ("", "_dkv", "_dq")}
    sizes |= {f"block_kv{step}": of_k for step in ("", "_dkv", "_dq")}
    settings = {"block_sizes": splash_attention.BlockSizes(**sizes), "attn_logits_soft_cap": softcap}
    settings["residual_checkpoint_name"] = "attention_out"

    def run(q, k, v, mask):
        heads = splash_attention.MultiHeadMask([sight] * q.shape[1])
        kernel = splash_attention.make_splash_mha_single_device(heads, **settings, interpret=INTERPRET)
        return jax.vmap(kernel)(q, k, v, splash_attention.SegmentIds(mask.queries, mask.keys))

    mesh = current_mesh()
    if mesh is None:
        return run(q, k, v, mask)
    # The compiler cannot split a kernel: each device runs it on its rows and heads, by the heads of the keys.
    wide = fitting_spec(k.shape, ("batch", "heads", None, None), mesh)
    specs = (wide, wide, wide, PartitionSpec(wide[0], None))
    return jax.shard_map(run, in_specs=specs, out_specs=wide, check_vma=False)(q, k, v, mask)
