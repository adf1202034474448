"""What a transformer is made of: projections, norms, embeddings, the MLP, the language-model head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from seq2seq_jax.config import TransformerConfig
from seq2seq_jax.parallel.rules import constrain

Dtype = Any
LOWEST = float(jnp.finfo(jnp.float32).min)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_new": lambda x: nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
    "tanh": jnp.tanh,
}


def initial_value(key: jax.Array, path: str, shape: Sequence[int], config: TransformerConfig) -> jax.Array:
    """How a new parameter begins, float32: torch's `_init_weights` of the three families.

    Args:
      path: the parameter's path in its transformer; its last part (kernel, embedding, bias, scale) decides.
      shape: as stored; a leading stack axis makes no difference.
    """
    leaf = path.rsplit("/", 1)[-1]
    if leaf == "scale":
        return jnp.ones(shape, jnp.float32)
    if leaf == "bias":
        return jnp.zeros(shape, jnp.float32)
    writes_residual = path.endswith(("attention/out/kernel", "mlp/down/kernel"))
    std = config.residual_initializer_range if writes_residual else None
    return (config.initializer_range if std is None else std) * jax.random.normal(key, tuple(shape), jnp.float32)


class Part(nn.Module):
    """A module with the settings of a transformer; declares parameters with logical axes."""

    config: TransformerConfig
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def weight(self, leaf: str, shape: Sequence[int], axes: Sequence[str]) -> jax.Array:
        """The parameter `leaf` in the compute dtype."""

        def init(key):
            return initial_value(key, "/".join((*self.path, leaf)), shape, self.config).astype(self.param_dtype)

        value = self.param(leaf, nn.with_logical_partitioning(init, tuple(axes)))
        # Said at the use, so that the gradient is split as its parameter is.
        return constrain(value, axes).astype(self.dtype)


class Projection(Part):
    """A linear map whose kernel [*inputs, *outputs] keeps heads as an axis of their own."""

    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    axes: tuple[str, ...] = ()
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n = len(self.inputs)
        kernel = self.weight("kernel", (*self.inputs, *self.outputs), self.axes)
        y = jax.lax.dot_general(x, kernel, ((tuple(range(x.ndim - n, x.ndim)), tuple(range(n))), ((), ())))
        if self.bias:
            # A bias has no long axis, so nothing is gained by splitting the embedding axis of one.
            axes = tuple("norm" if axis == "embed" else axis for axis in self.axes[n:])
            y = y + self.weight("bias", self.outputs, axes)
        return y


class Norm(Part):
    """Layer norm over the last axis; the statistics are float32 (torch.nn.LayerNorm)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = x.shape[-1]
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, -1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + self.config.norm_eps)
        scale, bias = self.weight("scale", (size,), ("norm",)), self.weight("bias", (size,), ("norm",))
        return (y * scale + bias).astype(self.dtype)


class Table(Part):
    """An embedding table [rows, features]. An id outside the table gives NaN, never a neighbour's row."""

    rows: int = 0
    features: int = 0
    axes: tuple[str, ...] = ("vocab", "embed")

    def setup(self):
        self.embedding = self.weight("embedding", (self.rows, self.features), self.axes)

    def __call__(self, ids: jax.Array) -> jax.Array:
        # The rows are looked up whole; a lookup of split rows would be gathered and split anew.
        table = constrain(self.embedding, (self.axes[0], None))
        return jnp.take(table, ids, axis=0, mode="fill", fill_value=jnp.nan)


class Embeddings(Part):
    """Token, position and type embeddings, summed and normed: ids [batch, length] to [batch, length, hidden]."""

    def setup(self):
        c, kw = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.token = Table(c, rows=c.padded_vocab_size, features=c.hidden_size, **kw)
        rows = c.max_positions + c.position_offset
        self.position = Table(c, rows=rows, features=c.hidden_size, axes=("position", "embed"), **kw)
        if c.type_vocab_size:
            self.token_type = Table(c, rows=c.type_vocab_size, features=c.hidden_size, axes=("position", "embed"), **kw)
        if c.embedding_norm:
            self.norm = Norm(c, **kw)
        self.drop = nn.Dropout(c.dropout if c.embedding_dropout is None else c.embedding_dropout)

    def __call__(
        self, ids: jax.Array, position_ids: jax.Array, token_type_ids: jax.Array | None, *, train: bool
    ) -> jax.Array:
        c = self.config
        x = self.token(ids)
        if c.embedding_scale != 1.0:
            x = x * c.embedding_scale
        if c.type_vocab_size:
            # Order of addition as in torch: token + type + position.
            x = x + self.token_type(jnp.zeros((1, 1), jnp.int32) if token_type_ids is None else token_type_ids)
        elif token_type_ids is not None:
            raise ValueError(f"token_type_ids are given, but this {c.family} has no token types; leave them out")
        x = x + self.position(position_ids + c.position_offset)
        if c.embedding_norm:
            x = self.norm(x)
        return constrain(self.drop(x, deterministic=not train), ("batch", "length", None))


class Mlp(Part):
    """up, activation, down."""

    def setup(self):
        c, kw = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        h, m = (c.hidden_size,), (c.intermediate_size,)
        self.up = Projection(c, inputs=h, outputs=m, axes=("embed", "mlp"), **kw)
        self.down = Projection(c, inputs=m, outputs=h, axes=("mlp", "embed"), **kw)
        self.drop = nn.Dropout(c.activation_dropout)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = ACTIVATIONS[self.config.activation](self.up(x))
        y = constrain(y, ("batch", *("length",) * (y.ndim - 2), "mlp"))
        return self.down(self.drop(y, deterministic=not train))


class Head(Part):
    """States [..., hidden] to logits [..., padded_vocab_size], float32; padded entries are the lowest float."""

    def setup(self):
        c, kw = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if c.head_transform:
            h = (c.hidden_size,)
            self.transform = Projection(c, inputs=h, outputs=h, axes=("embed", "norm"), **kw)
            self.norm = Norm(c, **kw)
        # The table has the shape of the token embedding, so that a tied head is an alias of it.
        self.kernel = self.weight("kernel", (c.padded_vocab_size, c.hidden_size), ("vocab", "embed"))
        if c.head_bias:
            self.bias = self.weight("bias", (c.padded_vocab_size,), ("vocab",))

    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        if c.head_transform:
            x = self.norm(ACTIVATIONS[c.activation](self.transform(x)))
        contract = (((x.ndim - 1,), (1,)), ((), ()))
        logits = jax.lax.dot_general(x, self.kernel, contract, preferred_element_type=jnp.float32)
        if c.head_bias:
            logits = logits + self.bias
        if c.padded_vocab_size > c.vocab_size:
            logits = jnp.where(jnp.arange(c.padded_vocab_size) < c.vocab_size, logits, LOWEST)
        return constrain(logits, ("batch", *("length",) * (logits.ndim - 2), "vocab"))
