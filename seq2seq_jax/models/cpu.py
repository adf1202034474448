"""What a CPU computes in another form than a GPU or a TPU. Each function here decides by itself; callers do not ask.

The results are the same up to rounding. A form acts where one CPU is all there is: under a mesh the compiler splits
the plain form.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Scores of so many bytes stay in the caches while they are worked on.
CACHED_SCORES = 4 * 2**20
# A few queries are multiplied with so many keys quicker than with a long row of them.
KEY_TILE = 32
# Source tokens that are encoded at a time: with more, products are no quicker, and where all rows are one part XLA
# copies their keys and values to the cache's order, twice.
ENCODED_TOKENS = 1024
# Scores that are looked at together where the highest are sought.
TOP_K_BLOCK = 64
# YNNPACK for reductions (softmax) only: products of float32 are quicker by Eigen where they are large.
EIGEN_PRODUCTS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
# glibc's names for mallopt(3); -1 as a size is the largest.
M_TRIM_THRESHOLD, M_MMAP_MAX, LARGEST = -1, -4, -1


def _alone() -> bool:
    """Whether what is traced is for one CPU, without a mesh."""
    return jax.default_backend() == "cpu" and jax.sharding.get_abstract_mesh().empty


def product_with_rows(product: Callable, x: jax.Array, kernel: jax.Array, *, most: int | None = None) -> jax.Array:
    """x [..., inputs] with kernel [outputs, inputs], both contracted over their last axis: [..., outputs].

    On a CPU the kernel is the left operand, whose rows are then read once: for 4 to 16 tokens 1.2 to 2 times as fast.

    Args:
      product: jax.lax.dot_general, or a function like it. most: with more tokens x is the left operand; None: never.
    """
    last = x.ndim - 1
    if _alone() and (most is None or math.prod(x.shape[:-1]) <= most):
        return jnp.moveaxis(product(kernel, x, (((1,), (last,)), ((), ()))), 0, -1)
    return product(x, kernel, (((last,), (1,)), ((), ())))


def attend_by_heads(attend: Callable, q: jax.Array, k: jax.Array, v: jax.Array, mask, bias) -> jax.Array:
    """attend(q, k, v, mask, bias): [batch, heads, queries, head_dim]; on a CPU for as many heads of one row at a time
    as `CACHED_SCORES` allows.

    Args:
      q, k, v: [batch, heads, queries or keys, head_dim]. mask: [batch or 1, 1, queries, keys], or None. bias:
        [batch or 1, heads, queries, keys], or None.
    """
    batch, heads, queries, _ = q.shape
    each = max(1, CACHED_SCORES // (4 * queries * v.shape[2]))
    if not _alone() or batch * heads <= each:
        return attend(q, k, v, mask, bias)
    each = next(n for n in range(min(each, heads), 0, -1) if heads % n == 0)
    parts = heads // each
    cut = lambda x: x.reshape(-1, 1, each, *x.shape[2:])  # [batch * parts, 1, each, ...]

    def one(xs):
        part, *arrays = xs
        row = part // parts
        of_row = None if mask is None else mask[row if mask.shape[0] > 1 else 0][None]
        of_part = None if bias is None else cut(bias)[part if bias.shape[0] > 1 else part % parts]
        return attend(*arrays, of_row, of_part)

    y = jax.lax.map(one, (jnp.arange(batch * parts), cut(q), cut(k), cut(v)))
    return y.reshape(q.shape[:3] + y.shape[4:])


def tile_keys(k: jax.Array) -> jax.Array:
    """Keys [batch, kv heads, source, head_dim] as a cache holds a source's: [batch, kv heads, head_dim, source], and
    on a CPU, where they fill tiles, [batch, kv heads, tiles, head_dim, KEY_TILE]."""
    if _alone() and k.shape[2] % KEY_TILE == 0:
        k = k.reshape(*k.shape[:2], -1, KEY_TILE, k.shape[3])
    return jnp.swapaxes(k, -2, -1)


def product_with_tiles(q: jax.Array, k: jax.Array) -> jax.Array:
    """Each query [batch, heads, queries, head_dim] with each key in tiles: float32 [batch, heads, queries, keys]."""
    q = jnp.broadcast_to(q[:, :, None], (*k.shape[:3], *q.shape[2:]))
    # Tiles stay a batch axis of the product and move after it: as its output's order XLA would move the keys.
    products = jnp.einsum("bhtqd,bhtdk->bhtqk", q, k, preferred_element_type=jnp.float32)
    return jnp.swapaxes(products, 2, 3).reshape(*k.shape[:2], q.shape[3], -1)


def without_one_row(tree: Any, batch: int) -> Any:
    """A cache as a loop carries it: arrays [batch, ...] of one row without that axis on a CPU.

    XLA drops the axis from the attention's products, and would write the new keys and values to both forms of the
    cache, of which it copies one.
    """
    return jax.tree.map(lambda a: a[0] if jnp.ndim(a) else a, tree) if _alone() and batch == 1 else tree


def with_one_row(tree: Any, batch: int) -> Any:
    """The inverse of `without_one_row`."""
    return jax.tree.map(lambda a: a[None] if jnp.ndim(a) else a, tree) if _alone() and batch == 1 else tree


def update_rows(stored: jax.Array, new: jax.Array, place: tuple) -> jax.Array:
    """jax.lax.dynamic_update_slice of stored [batch, ...] at `place`, from row 0; as `without_one_row` has it."""
    if _alone() and len(stored) == 1:
        return jax.lax.dynamic_update_slice(stored[0], new[0], place[1:])[None]
    return jax.lax.dynamic_update_slice(stored, new, place)


def map_rows(function: Callable[[Any], Any], arguments: Any, batch: int, length: int) -> Any:
    """function(arguments), trees of arrays [batch, ...]; on a CPU a few rows at a time (`ENCODED_TOKENS`).

    Args:
      length: tokens of a row.
    """
    fits = lambda rows: batch % rows == 0 and (rows == 1 or rows * length <= ENCODED_TOKENS)
    few = max(rows for rows in range(1, batch + 1) if fits(rows))
    if not _alone() or few == batch:
        return function(arguments)
    parts = jax.tree.map(lambda a: a.reshape(-1, few, *a.shape[1:]), arguments)  # [batch / few, few, ...]
    return jax.tree.map(lambda a: a.reshape(batch, *a.shape[2:]), jax.lax.map(function, parts))


def top_k(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` highest of scores [..., rows], best first, and their ids [..., count]: jax.lax.top_k.

    That looks at each score on one thread of a CPU. There, the best blocks are found first, and then the best in them,
    with ties in the same order.
    """
    rows = scores.shape[-1]
    if not _alone() or rows < 2 * count * TOP_K_BLOCK:
        if count > 1:
            return jax.lax.top_k(scores, count)
        at = jnp.argmax(scores, axis=-1, keepdims=True)
        return jnp.take_along_axis(scores, at, axis=-1), at
    block = (*(1,) * (scores.ndim - 1), TOP_K_BLOCK)
    padding = (*((0, 0),) * (scores.ndim - 1), (0, -rows % TOP_K_BLOCK))
    maxima = jax.lax.reduce_window(scores, -jnp.inf, jax.lax.max, block, block, padding)  # [..., blocks]
    blocks = jnp.sort(jax.lax.top_k(maxima, count)[1], axis=-1)
    ids = (blocks[..., None] * TOP_K_BLOCK + jnp.arange(TOP_K_BLOCK)).reshape(*scores.shape[:-1], -1)
    candidates = jnp.take_along_axis(scores, jnp.minimum(ids, rows - 1), axis=-1)
    best, at = jax.lax.top_k(jnp.where(ids < rows, candidates, -jnp.inf), count)
    return best, jnp.take_along_axis(ids, at, axis=-1)


class jit_large_products:
    """jax.jit of a function of a model and more, whose products are large: on a CPU those of float32 are then Eigen's,
    which are quicker there than YNNPACK's; those of int8 are not."""

    def __init__(self, function: Callable, **options: Any):
        functools.update_wrapper(self, function)
        self._by_eigen = {
            eigen: jax.jit(function, compiler_options=EIGEN_PRODUCTS if eigen else None, **options)
            for eigen in (False, True)
        }

    def _chosen(self, model: Any) -> Callable:
        return self._by_eigen[jax.default_backend() == "cpu" and not model.int8]

    def __call__(self, model: Any, *arguments: Any) -> Any:
        return self._chosen(model)(model, *arguments)

    def lower(self, model: Any, *arguments: Any) -> jax.stages.Lowered:
        return self._chosen(model).lower(model, *arguments)

    def _cache_size(self) -> int:
        return sum(function._cache_size() for function in self._by_eigen.values())


def keep_memory() -> bool:
    """Lets a process that computes on a CPU use the memory of one step again in the next; elsewhere malloc stays as it
    is.

    XLA asks malloc for a program's temporaries each time it runs (2.1 GB in a training step of two BERT bases), and
    malloc gives blocks of that size back to the system as soon as they are free, which then clears their pages anew in
    every step. From here on malloc keeps what is freed: the process shrinks by `release_memory` alone. A program runs
    in the thread that calls it, so that its memory is free when the call returns, and comes from the heap: the arenas
    of other threads hold no blocks so large.

    To be called before anything else touches a device, since jax then settles in which thread programs run; later, the
    large blocks are given back as before, and the answer does not tell.

    Returns:
      Whether malloc took the settings: on a CPU, with glibc.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.default_backend() != "cpu":
        return False
    mallopt = _glibc("mallopt")
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST))


def release_memory() -> None:
    """Gives back to the system what malloc holds of freed memory, which loading, compiling and a program's first run
    leave in pieces that the next one may not fit into."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
