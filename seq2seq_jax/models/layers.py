"""What a transformer is made of: projections, norms, embeddings, the MLP, the language-model head."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from seq2seq_jax.config import LossConfig, TransformerConfig
from seq2seq_jax.models import cpu
from seq2seq_jax.models.int8 import int8_product
from seq2seq_jax.models.losses import chunked_token_losses, token_losses
from seq2seq_jax.parallel.axes import constrain

Dtype = Any
LOWEST = float(jnp.finfo(jnp.float32).min)
# Up to so many tokens the head is the left operand on a CPU; with 64 that is slower (models/cpu.py).
FEW_TOKENS = 32


def _gelu(x: jax.Array) -> jax.Array:
    return nn.gelu(x, approximate=False)  # by erfc: erf costs less, its rounding shows


def _gelu_tanh(x: jax.Array) -> jax.Array:
    return nn.gelu(x, approximate=True)


def _sqrt_softplus(x: jax.Array) -> jax.Array:
    # Far below 0 softplus is exp, whose root keeps a derivative where exp itself is rounded to 0.
    return jnp.where(x < -20.0, jnp.exp(0.5 * jnp.minimum(x, -20.0)), jnp.sqrt(nn.softplus(jnp.maximum(x, -20.0))))


def _clip(x: jax.Array, low: float, high: float) -> jax.Array:
    """x between the bounds, where its derivative is 1, as torch has it; jnp.clip halves it at a bound."""
    return jnp.where(x < low, low, jnp.where(x > high, high, x))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _gelu,
    "gelu_10": lambda x: _clip(_gelu(x), -10.0, 10.0),
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_python": _gelu,
    "gelu_python_tanh": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "hardswish": lambda x: jnp.where(x <= -3.0, 0.0, jnp.where(x < 3.0, x * (x + 3.0) / 6.0, x)),
    "laplace": lambda x: 0.5 * (1.0 + jax.lax.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0)))),
    "leaky_relu": lambda x: jnp.where(x > 0.0, x, 0.01 * x),
    "linear": lambda x: x,
    "mish": lambda x: x * jnp.tanh(nn.softplus(x)),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "relu2": lambda x: jnp.square(nn.relu(x)),
    "relu6": lambda x: jnp.where(x >= 6.0, 6.0, nn.relu(x)),
    "sigmoid": nn.sigmoid,
    "silu": nn.silu,
    "sqrtsoftplus": _sqrt_softplus,
    "swish": nn.silu,
    "tanh": jnp.tanh,
}


def accumulate_float32(product: Callable, x: jax.Array, y: jax.Array) -> jax.Array:
    """product(x, y), linear in both, float32 whatever they are.

    What comes back to 16-bit numbers is rounded to theirs before it meets the other one, as under torch's autocast: a
    product of float32 and bfloat16 would take twice as long, or more.
    """
    low = x.dtype == y.dtype and x.dtype.itemsize == 2
    return (_summed if low else _wide)(product, x, y)


def _wide(product: Callable, x: jax.Array, y: jax.Array) -> jax.Array:
    return product(x, y, preferred_element_type=jnp.float32)


_summed = jax.custom_vjp(_wide, nondiff_argnums=(0,))
_summed.defvjp(
    lambda product, x, y: (_wide(product, x, y), (x, y)),
    lambda product, kept, g: jax.vjp(product, *kept)[1](g.astype(kept[0].dtype)),
)


def residual_dtype(config: TransformerConfig, dtype: Dtype) -> Dtype:
    """That of the stream between the layers, and of what the MLP adds to it."""
    wide = config.float16 == "float32_residual" and dtype == jnp.float16
    return jnp.float32 if wide else dtype


def clamp_float16(x: jax.Array) -> jax.Array:
    """x with float16's infinities brought back to what it holds (the clamp of T5Block and BartEncoderLayer)."""
    if x.dtype != jnp.float16:
        return x
    most = jnp.finfo(jnp.float16).max - 1000
    return jnp.where(jnp.isinf(x), jnp.sign(x) * most, x)


def initial_value(key: jax.Array, path: str, shape: Sequence[int], config: TransformerConfig) -> jax.Array:
    """How a new parameter begins, float32: torch's `_init_weights` of the three families.

    Args:
      path: the parameter's path in its transformer; its last part (kernel, embedding, bias, scale) decides.
      shape: as stored; a leading stack axis makes no difference.
    """
    leaf = path.rsplit("/", 1)[-1]
    if leaf == "scale":
        return jnp.full(shape, 1.0 - config.norm_scale_offset, jnp.float32)
    if leaf == "bias" or path.endswith("own_token/embedding"):
        return jnp.zeros(shape, jnp.float32)
    writes_residual = path.endswith(("attention/out/kernel", "mlp/down/kernel"))
    std = config.residual_initializer_range if writes_residual else None
    return (config.initializer_range if std is None else std) * jax.random.normal(key, tuple(shape), jnp.float32)


class TransformerModule(nn.Module):
    """A module with the settings of a transformer; declares parameters with logical axes.

    Attributes:
      outputs_first: kernels are stored as [*outputs, *inputs], as a decoder reads them when few tokens meet them.
    """

    config: TransformerConfig
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    outputs_first: bool = False

    def weight(self, leaf: str, shape: Sequence[int], axes: Sequence[str]) -> jax.Array:
        """The parameter `leaf` in the compute dtype."""

        def init(key):
            return initial_value(key, "/".join((*self.path, leaf)), shape, self.config).astype(self.param_dtype)

        value = self.param(leaf, nn.with_logical_partitioning(init, tuple(axes)))
        # Said at the use, so that the gradient is split as its parameter is.
        return constrain(value, axes).astype(self.dtype)


class Dropout(nn.Module):
    """Entries set to 0 at a rate, the others scaled up (Srivastava et al. 2014); the rate counts in steps of 2**-16.

    Two entries share a random word of 32 bits, and no float is made of it: on a CPU half of the time of flax's.
    """

    rate: float

    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        """x: [..., length, features]."""
        if deterministic or not self.rate:
            return x
        length = x.shape[-2]
        words = (*x.shape[:-2], -(-length // 2), x.shape[-1])
        bits = jax.random.bits(self.make_rng("dropout"), words, jnp.uint32)
        # Halves of words stand along the length, which no mesh splits.
        bits = jnp.concatenate([bits & 0xFFFF, bits >> 16], axis=-2)[..., :length, :]
        kept = checkpoint_name(bits >= round(self.rate * 2**16), "dropped")
        return jnp.where(kept, x * (1.0 / (1.0 - self.rate)), 0.0)


class Projection(TransformerModule):
    """A linear map of [..., *inputs] to [..., *outputs]; its kernel keeps heads as an axis of their own."""

    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    axes: tuple[str, ...] = ()
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n, size = len(self.inputs), math.prod(self.inputs)
        lead = x.shape[: x.ndim - n]
        if self.has_variable("params", "kernel_scale"):
            kernel, scale = self.get_variable("params", "kernel"), self.get_variable("params", "kernel_scale")
            kernel, scale = kernel.reshape(scale.size, -1), scale.reshape(-1)  # [outputs, inputs], [outputs]
            y = int8_product(kernel, scale, x.reshape(*lead, size), few_tokens=self.outputs_first).astype(self.dtype)
        elif self.outputs_first:
            axes = (*self.axes[n:], *self.axes[:n])
            kernel = self.weight("kernel", (*self.outputs, *self.inputs), axes).reshape(-1, size)
            y = cpu.product_with_rows(jax.lax.dot_general, x.reshape(*lead, size), kernel)
        else:
            # As matrices: of arrays with more axes XLA's CPU makes transposed copies for the backward pass.
            kernel = self.weight("kernel", (*self.inputs, *self.outputs), self.axes).reshape(size, -1)
            y = x.reshape(-1, size) @ kernel
        y = y.reshape(*lead, *self.outputs)
        if self.bias:
            # A bias has no long axis, so nothing is gained by splitting the embedding axis of one.
            axes = tuple("norm" if axis == "embed" else axis for axis in self.axes[n:])
            y = y + self.weight("bias", self.outputs, axes)
        return y


class Norm(TransformerModule):
    """Layer norm (torch.nn.LayerNorm) or RMS norm over the features; the statistics are float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, size, y = self.config, x.shape[-1], x.astype(jnp.float32)
        if c.norm == "layer":
            y = y - jnp.mean(y, -1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + c.norm_eps)
        y = y * (c.norm_scale_offset + self.weight("scale", (size,), ("norm",)))
        if c.norm == "layer" and c.norm_bias:
            y = y + self.weight("bias", (size,), ("norm",))
        return y.astype(self.dtype)


class EmbeddingTable(TransformerModule):
    """An embedding table [rows, features]. An id outside the table gives NaN, never a neighbour's row.

    Attributes:
      padding_idx: the row that gets no gradient (torch.nn.Embedding's); None: there is none.
    """

    rows: int = 0
    features: int = 0
    axes: tuple[str, ...] = ("vocab", "embed")
    padding_idx: int | None = None

    def setup(self):
        self.embedding = self.weight("embedding", (self.rows, self.features), self.axes)

    def __call__(self, ids: jax.Array) -> jax.Array:
        # The rows are looked up whole; a lookup of split rows would be gathered and split anew.
        table = constrain(self.embedding, (self.axes[0], None))
        rows = jnp.take(table, ids, axis=0, mode="fill", fill_value=jnp.nan)
        if self.padding_idx is None:
            return rows
        return jnp.where((ids == self.padding_idx)[..., None], jax.lax.stop_gradient(rows), rows)


def sinusoidal_embeddings(position_ids: jax.Array, size: int, *, wide: bool) -> jax.Array:
    """Sines, then cosines, of positions [batch, length]: [batch, length, size] (Vaswani et al. 2017).

    Args:
      wide: the frequencies go down to 1 / 10000 itself (tensor2tensor's, XGLM), not to the step before.
    """
    half = size // 2
    exponents = np.arange(half) / (half - 1 if wide else half)
    angles = position_ids[..., None].astype(jnp.float32) * jnp.asarray(10000.0**-exponents, jnp.float32)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Embeddings(TransformerModule):
    """Token, position and type embeddings, summed and normed: ids [batch, length] to [batch, length, hidden]."""

    def setup(self):
        c, kw = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        first = c.embedding_projection == "tokens"  # the sum is of the hidden size
        width = c.hidden_size if first else c.embedding_size
        small = {"features": width, "axes": ("position", "embed"), **kw}
        size = {"rows": c.padded_vocab_size, "features": c.embedding_size}
        self.token = EmbeddingTable(c, padding_idx=c.padding_idx, **size, **kw)
        if c.own_token_id is not None:
            self.own_token = EmbeddingTable(c, rows=1, **small)
        if c.positions == "learned":
            padding = None if c.position_pad_id is None else c.position_offset - 1
            self.position = EmbeddingTable(c, rows=c.max_positions + c.position_offset, padding_idx=padding, **small)
        if c.type_vocab_size:
            self.token_type = EmbeddingTable(c, rows=c.type_vocab_size, **small)
        if c.task_vocab_size:
            self.task_type = EmbeddingTable(c, rows=c.task_vocab_size, **small)
        if c.embedding_norm:
            self.norm = Norm(c, **kw)
        if c.embedding_size != c.hidden_size:
            shape = {"inputs": (c.embedding_size,), "outputs": (c.hidden_size,), "axes": ("norm", "embed")}
            self.projection = Projection(c, bias=c.embedding_projection_bias, **shape, **kw)
        self.drop = Dropout(c.dropout if c.embedding_dropout is None else c.embedding_dropout)

    def __call__(
        self,
        ids: jax.Array | None,
        position_ids: jax.Array,
        token_type_ids: jax.Array | None,
        *,
        embeds: jax.Array | None = None,
        train: bool,
    ) -> jax.Array:
        """position_ids count from 0 and are not yet moved by position_offset.

        Args:
          embeds: [batch, length, embedding_size], what stands in for the token table's rows; ids are not read then.
        """
        c = self.config
        project = self.projection if c.embedding_size != c.hidden_size else lambda x: x
        first = c.embedding_projection == "tokens"
        x = self.token(ids) if embeds is None else embeds.astype(self.dtype)
        if c.embedding_scale != 1.0 and (embeds is None or c.scale_given_embeddings):
            x = x * jnp.asarray(c.embedding_scale, self.dtype)
        if c.own_token_id is not None and embeds is None:
            x = jnp.where((ids == c.own_token_id)[..., None], self.own_token.embedding[0], x)
        x = project(x) if first else x
        if c.type_vocab_size:
            # Order of addition as in torch: token + type + position.
            x = x + self.token_type(jnp.zeros((1, 1), jnp.int32) if token_type_ids is None else token_type_ids)
        elif token_type_ids is not None:
            raise ValueError(f"token_type_ids are given, but this {c.family} has no token types; leave them out")
        if not c.positions_after_norm:
            x = self._with_positions(x, position_ids)
        if c.task_vocab_size:
            x = x + self.task_type(jnp.zeros((1, 1), jnp.int32))
        if c.embedding_norm:
            x = self.norm(x)
        if c.positions_after_norm:
            x = self._with_positions(x, position_ids)
        x = self.drop(x, deterministic=not train)
        return constrain(x if first else project(x), ("batch", "length", None))

    def _with_positions(self, x: jax.Array, position_ids: jax.Array) -> jax.Array:
        c = self.config
        if c.positions == "none":
            return x
        rows = position_ids + c.position_offset
        if c.positions == "learned":
            return x + self.position(rows)
        return x + sinusoidal_embeddings(rows, x.shape[-1], wide=c.positions == "sinusoidal_wide").astype(self.dtype)


class Mlp(TransformerModule):
    """up, activation, down; where it is gated, activation(gate) * up, down."""

    def setup(self):
        c = self.config
        kw = {"dtype": self.dtype, "param_dtype": self.param_dtype, "outputs_first": self.outputs_first}
        kw["bias"] = c.mlp_bias
        h, m = (c.hidden_size,), (c.intermediate_size,)
        self.up = Projection(c, inputs=h, outputs=m, axes=("embed", "mlp"), **kw)
        if c.mlp_gated:
            self.gate = Projection(c, inputs=h, outputs=m, axes=("embed", "mlp"), **kw)
        down = kw | {"dtype": residual_dtype(c, self.dtype)}
        self.down = Projection(c, inputs=m, outputs=h, axes=("mlp", "embed"), **down)
        self.drop = Dropout(c.activation_dropout)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        activation = ACTIVATIONS[self.config.activation]
        up = checkpoint_name(self.up(x), "mlp")  # what the activation's derivative reads
        y = activation(checkpoint_name(self.gate(x), "mlp")) * up if self.config.mlp_gated else activation(up)
        y = constrain(y, ("batch", *("length",) * (y.ndim - 2), "mlp"))
        return self.down(self.drop(y, deterministic=not train))


class Head(TransformerModule):
    """States [..., hidden] to logits [..., padded_vocab_size], float32; padded entries are the lowest float."""

    def setup(self):
        c, kw = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if c.head_transform or c.head_projection:
            shape = {"inputs": (c.hidden_size,), "outputs": (c.head_size,), "axes": ("embed", "norm")}
            self.transform = Projection(c, bias=c.head_transform and c.head_transform_bias, **shape, **kw)
        if c.head_transform:
            self.norm = Norm(c, **kw)
        # The table has the shape of the token embedding, so that a tied head is an alias of it.
        if self.has_variable("params", "kernel_scale"):
            self.kernel = self.get_variable("params", "kernel")
        else:
            self.kernel = self.weight("kernel", (c.padded_vocab_size, c.head_size), ("vocab", "embed"))
        bias = None if c.head_bias == "none" else self.weight("bias", (c.padded_vocab_size,), ("vocab",))
        self.bias = jax.lax.stop_gradient(bias) if c.head_bias == "fixed" else bias

    def _features(self, x: jax.Array) -> jax.Array:
        """States [..., hidden] as the kernel reads them, [..., head_size]."""
        c = self.config
        if c.head_transform:
            x = self.norm(ACTIVATIONS[c.head_activation or c.activation](self.transform(x)))
        elif c.head_projection:
            x = self.transform(x)
        return x if c.head_scale == 1.0 else x * jnp.asarray(c.head_scale, x.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        c, x = self.config, self._features(x)
        if self.kernel.dtype == jnp.int8:
            logits = int8_product(self.kernel, self.get_variable("params", "kernel_scale"), x, few_tokens=True)
        else:
            product = lambda a, b, axes: accumulate_float32(
                functools.partial(jax.lax.dot_general, dimension_numbers=axes), a, b
            )
            logits = cpu.product_with_rows(product, x, self.kernel, most=FEW_TOKENS)
        if self.bias is not None:
            logits = logits + self.bias
        if c.head_softcap is not None:
            logits = c.head_softcap * jnp.tanh(logits / c.head_softcap)
        if c.padded_vocab_size > c.vocab_size:
            logits = jnp.where(jnp.arange(c.padded_vocab_size) < c.vocab_size, logits, LOWEST)
        return constrain(logits, ("batch", *("length",) * (logits.ndim - 2), "vocab"))

    def token_losses(self, x: jax.Array, labels: jax.Array, config: LossConfig) -> jax.Array:
        """Losses of `labels` [batch, length] (losses.py) from states [batch, length, hidden]. Int8 kernels, which are
        for decoding, know no chunks."""
        c = self.config
        if config.chunk is None or self.kernel.dtype == jnp.int8:
            return token_losses(self(x), labels, config, vocab_size=c.vocab_size)
        options = {"vocab_size": c.vocab_size, "softcap": c.head_softcap}
        return chunked_token_losses(self._features(x), self.kernel, self.bias, labels, config, **options)
