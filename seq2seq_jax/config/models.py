"""What a transformer is, and what a pair is."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from seq2seq_jax.config.validation import check, nearest

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish", "tanh")


@dataclass(frozen=True)
class LayerSettings:
    """What may differ from layer to layer.

    Attributes:
      attention_scale: factor on the attention scores; None is head_dim ** -0.5.
      cross_attention: whether this layer of a cross-attending decoder has a cross-attention block.
    """

    attention_scale: float | None = None
    cross_attention: bool = True


@dataclass(frozen=True)
class TransformerConfig:
    """One transformer, as encoder or as decoder; every family is a setting of it.

    Attributes:
      family: the family whose file maps it to torch and back ("bert", "gpt2", "bart" ...).
      vocab_size: rows of the embedding table that mean something.
      padded_vocab_size: rows that are stored; more than vocab_size only where a mesh asks for it.
      hidden_size, num_layers, num_heads, head_dim, intermediate_size: the usual sizes.
      activation: a name of `ACTIVATIONS`.
      norm_position: "pre" or "post" (before each block, or after each residual addition).
      norm_eps: added to the variance.
      embedding_norm: a layer norm on the sum of embeddings. final_norm: one after the last layer.
      max_positions: rows of the learned position table, `position_offset` not counted.
      position_offset: rows of the table in front of position 0 (BART: 2).
      type_vocab_size: token types; 0 for none.
      embedding_scale: factor on the token embeddings.
      causal: a token sees itself and what is before it.
      cross_attention_size: width of the encoder states that the cross-attention reads; None for no cross-attention.
      head: whether there is a language-model head; head_transform (dense, activation, norm before it), head_bias,
        tie_head (its kernel is the token embedding's table).
      dropout: after the embeddings and each block; attention_dropout: on attention weights; activation_dropout:
        inside the MLP; embedding_dropout: None means `dropout`.
      initializer_range: standard deviation of new kernels and embeddings;
      residual_initializer_range: that of kernels that write to the residual stream; None means initializer_range.
      layer_pattern: settings of layer i are layer_pattern[i % len(layer_pattern)].
      source_json: the `config.json` that this came from, so that unknown fields survive a round trip.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    head_dim: int | None = None
    padded_vocab_size: int | None = None
    activation: str = "gelu"
    norm_position: str = "post"
    norm_eps: float = 1e-12
    embedding_norm: bool = True
    final_norm: bool = False
    max_positions: int = 512
    position_offset: int = 0
    type_vocab_size: int = 0
    embedding_scale: float = 1.0
    causal: bool = False
    cross_attention_size: int | None = None
    head: bool = False
    head_transform: bool = False
    head_bias: bool = False
    tie_head: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    embedding_dropout: float | None = None
    initializer_range: float = 0.02
    residual_initializer_range: float | None = None
    layer_pattern: tuple[LayerSettings, ...] = (LayerSettings(),)
    source_json: str = field(default="{}", compare=False, repr=False)

    def __post_init__(self):
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "max_positions"):
            value = getattr(self, name)
            check(
                isinstance(value, int) and value > 0,
                f"TransformerConfig.{name} is {value!r}; give a whole number above 0",
            )
        if self.head_dim is None:
            check(
                self.hidden_size % self.num_heads == 0,
                f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}; give head_dim, or sizes"
                " that divide",
            )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        if self.padded_vocab_size is None:
            object.__setattr__(self, "padded_vocab_size", self.vocab_size)
        check(
            self.padded_vocab_size >= self.vocab_size,
            f"padded_vocab_size {self.padded_vocab_size} is below vocab_size {self.vocab_size}; give at least that",
        )
        check(
            self.activation in ACTIVATIONS,
            f"activation {self.activation!r} is unknown: {nearest(self.activation, ACTIVATIONS)}",
        )
        check(
            self.norm_position in ("pre", "post"), f"norm_position {self.norm_position!r} is neither 'pre' nor 'post'"
        )
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            value = getattr(self, name)
            check(0.0 <= value < 1.0, f"TransformerConfig.{name} is {value!r}; give a rate from 0 to below 1")
        check(len(self.layer_pattern) > 0, "layer_pattern is empty; give at least one LayerSettings")

    def layer(self, index: int) -> LayerSettings:
        """Settings of layer `index` (from 0)."""
        return self.layer_pattern[index % len(self.layer_pattern)]

    @property
    def source(self) -> dict[str, Any]:
        """The `config.json` fields that this came from."""
        return json.loads(self.source_json)


TIES = (False, True, "embeddings")


@dataclass(frozen=True)
class Alias:
    """A parameter, or a subtree of parameters, that is stored once and filled in a second place.

    Attributes:
      source, target: paths in the parameter tree ("encoder/embeddings/token/embedding").
      layers: for stacked parameters, target = source[start:stop]; None for all.
    """

    source: str
    target: str
    layers: tuple[int, int] | None = None

    def __post_init__(self):
        check(self.source != self.target, f"the alias of {self.source!r} points to itself")


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """A pair (transformers.EncoderDecoderConfig).

    Attributes:
      encoder, decoder: the two transformers.
      decoder_start_token_id, pad_token_id: what labels are shifted with; None until known.
      eos_token_ids: tokens that end a sequence.
      tie_encoder_decoder: False, True (everything that both sides have), "embeddings" (the token table), or aliases.
      source_json: the pair's own `config.json`.
    """

    encoder: TransformerConfig
    decoder: TransformerConfig
    decoder_start_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    tie_encoder_decoder: bool | str | tuple[Alias, ...] = False
    source_json: str = field(default="{}", compare=False, repr=False)

    def __post_init__(self):
        check(self.decoder.cross_attention_size is not None, "the decoder of a pair needs cross_attention_size")
        check(self.decoder.head, "the decoder of a pair needs a language-model head (head=True)")
        if not isinstance(self.tie_encoder_decoder, tuple):
            check(
                self.tie_encoder_decoder in TIES,
                f"tie_encoder_decoder is {self.tie_encoder_decoder!r}; give False, True, 'embeddings' or aliases",
            )
        named = {"decoder_start_token_id": self.decoder_start_token_id, "pad_token_id": self.pad_token_id}
        for name, value in [*named.items(), *(("eos_token_id", value) for value in self.eos_token_ids)]:
            if value is not None:
                check(
                    0 <= value < self.decoder.vocab_size,
                    f"{name} {value} is outside the decoder's vocabulary of {self.decoder.vocab_size}",
                )

    @property
    def has_projection(self) -> bool:
        """Whether `enc_to_dec_proj` brings the encoder's states to the width that the decoder reads."""
        return self.encoder.hidden_size != self.decoder.cross_attention_size

    @property
    def source(self) -> dict[str, Any]:
        return json.loads(self.source_json)
