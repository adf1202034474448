"""The decoding cache: an explicit value that `init_cache` makes, `decode_step` extends and a search reorders."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from seq2seq_jax.models import cpu


@struct.dataclass
class Cache:
    """Keys and values of what was decoded, and of the source.

    The self-attention arrays are written once and never moved: the beams of a row share one memory, and `ancestry` says
    which beam slot wrote each position of a hypothesis. Reordering beams moves that small table only.

    Attributes:
      keys: per layer, [batch, kv heads, head_dim, length * beams]: position by position, all beams of each. Flat,
        because a reshape between the update and the attention would make XLA copy them on every step, and in the
        order in which the attention reads them. values: likewise, [batch, kv heads, length * beams, head_dim].
      cross: per layer, the source's keys as `cpu.tile_keys` gives them and its values
        [batch, kv heads, source, head_dim], one copy for all beams; None in a layer without cross-attention.
      cross_mask: bool [batch, source], where the source has tokens.
      ancestry: int32 [batch, beams, length], the slot that holds a position of this hypothesis.
      index: int32 scalar, positions written so far.
      uncounted: int32 [batch, 1], pad tokens of the prompt (what is read at index 0) where positions do not count them
        (RoBERTa); else None.
      begins: int32 [batch, 1], where each row's prompt begins, behind pads that nobody sees; None: at 0.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    cross: tuple[tuple[jax.Array, jax.Array] | None, ...]
    cross_mask: jax.Array
    ancestry: jax.Array
    index: jax.Array
    uncounted: jax.Array | None = None
    begins: jax.Array | None = None

    @property
    def num_beams(self) -> int:
        return self.ancestry.shape[1]

    @property
    def length(self) -> int:
        return self.ancestry.shape[2]

    def after_prompt(self) -> Cache:
        """The cache after a prompt that only slot 0 wrote: every beam descends from it."""
        written = jnp.arange(self.length) < self.index
        return self.replace(ancestry=jnp.where(written, 0, self.ancestry))

    def select(self, parents: jax.Array) -> Cache:
        """The cache in which beam j continues beam parents[batch, j]."""
        moved = jnp.take_along_axis(self.ancestry, parents[:, :, None], axis=1)
        written = jnp.arange(self.length) < self.index
        own = jnp.arange(self.num_beams, dtype=jnp.int32)[None, :, None]
        return self.replace(ancestry=jnp.where(written, moved, own))

    def grown(self, length: int) -> Cache:
        """The cache with room for `length` tokens; what is written keeps its place."""
        more = (0, (length - self.length) * self.num_beams)

        def longer(stores, *width):
            return tuple(jnp.pad(store, ((0, 0), (0, 0), *width)) for store in stores)

        own = jnp.arange(self.num_beams, dtype=jnp.int32)[None, :, None]
        own = jnp.broadcast_to(own, (*self.ancestry.shape[:2], length - self.length))
        return self.replace(
            keys=longer(self.keys, (0, 0), more),
            values=longer(self.values, more, (0, 0)),
            ancestry=jnp.concatenate([self.ancestry, own], axis=2),
        )

    def visible(self, beams: int, tokens: int, window: int | None = None) -> jax.Array:
        """What the next `tokens` positions of the first `beams` beams may attend to, within `window` positions back.

        Returns:
          bool [batch, 1, beams * tokens, length * slots], in the order of the flattened cache.
        """
        batch, slots, length = self.ancestry.shape
        position = self.index + jnp.arange(tokens)
        past = jnp.arange(length)[None, :] <= position[:, None]
        if window is not None:
            past &= jnp.arange(length)[None, :] >= position[:, None] - window
        mine = self.ancestry[:, :beams, :, None] == jnp.arange(slots)
        mask = mine[:, :, None] & past[None, None, :, :, None]
        if self.begins is not None:
            mask &= (jnp.arange(length) >= self.begins)[:, None, None, :, None]
        return mask.reshape(batch, 1, beams * tokens, length * slots)

    def write(self, layer: int, k: jax.Array, v: jax.Array, beams: int) -> Cache:
        """Puts new keys and values [batch, heads, beams * tokens, head_dim] of `layer` at `index`."""
        batch, heads, rows, dim = k.shape

        def flat(new):
            new = jnp.swapaxes(new.reshape(batch, heads, beams, rows // beams, dim), 2, 3)
            # Slots that write nothing (of a prompt, which one beam reads) get zeros that nobody sees.
            new = jnp.pad(new, ((0, 0),) * 3 + ((0, self.num_beams - beams), (0, 0)))
            return new.reshape(batch, heads, -1, dim)

        def replaced(stores, new, place):
            new = cpu.update_rows(stores[layer], new.astype(stores[layer].dtype), place)
            return (*stores[:layer], new, *stores[layer + 1 :])

        at = self.index * self.num_beams
        return self.replace(
            keys=replaced(self.keys, jnp.swapaxes(flat(k), 2, 3), (0, 0, 0, at)),
            values=replaced(self.values, flat(v), (0, 0, at, 0)),
        )
