"""Configs of a transformer and of a pair of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from seq2seq_jax.config.validation import check, nearest

# transformers.activations.ACT2FN without those that have parameters (prelu, xielu).
ACTIVATIONS = (
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2", "relu6",
    "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh",
)  # fmt: skip
CHOICES = {
    "activation": ACTIVATIONS,
    "head_activation": ACTIVATIONS,
    "norm": ("layer", "rms"),
    "norm_position": ("pre", "post", "sandwich", "res_post"),
    "positions": ("learned", "sinusoidal", "sinusoidal_wide", "none"),
    "embedding_projection": ("sum", "tokens"),
    "head_bias": ("none", "trained", "fixed"),
    "float16": ("plain", "float32_residual", "clamped"),
}

LONG_ROPE = (
    "beyond original_max_position_embeddings this model rotates positions by LongRoPE's long_factor, which is not"
    " supported; cut it (max_length)"
)


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding (Su et al. 2021): pairs of features are rotated by position * frequency.

    Attributes:
      frequencies: one angle per position for each pair; head_dim - 2 * len(frequencies) features are not rotated.
      factor: on cosine and sine (YaRN's attention factor).
      interleaved: a pair is (2i, 2i + 1), as in RoFormer; else (i, i + half).
      values: values are rotated too.
      longest: longer sequences would need other frequencies, which are not supported (LongRoPE); None: no limit.
    """

    frequencies: tuple[float, ...]
    factor: float = 1.0
    interleaved: bool = False
    values: bool = False
    longest: int | None = None


@dataclass(frozen=True)
class LayerSettings:
    """What may differ from layer to layer.

    Attributes:
      attention_scale: factor on the attention scores; None is head_dim ** -0.5.
      cross_attention: whether this layer of a cross-attending decoder has a cross-attention block.
      window: the largest distance at which a token sees another in self-attention; None: any.
      rotary: rotary embedding of the self-attention's queries and keys; None: none.
      attention_norm: whether there is a norm before the self-attention (ModernBERT's first layer has none).
      window_ahead: the largest distance to later tokens; None: window.
    """

    attention_scale: float | None = None
    cross_attention: bool = True
    window: int | None = None
    rotary: Rotary | None = None
    attention_norm: bool = True
    window_ahead: int | None = None

    @property
    def reach(self) -> tuple[int, int] | None:
        """The largest distances at which a token sees earlier and later tokens; None: all are seen."""
        ahead = self.window if self.window_ahead is None else self.window_ahead
        return None if self.window is None else (self.window, ahead)


@dataclass(frozen=True)
class RelativeBias:
    """A learned bias on attention scores for each bucket of distances (Raffel et al. 2020).

    Attributes:
      buckets, max_distance: of T5's function from distance to bucket.
      per_layer: every layer has a table of its own (UMT5), else all share one.
    """

    buckets: int
    max_distance: int
    per_layer: bool = False


@dataclass(frozen=True)
class Disentangled:
    """DeBERTa's attention (He et al. 2021), with scores between contents and relative positions.

    Attributes:
      max_distance: greater distances count as this one. buckets: of the logarithmic scale (v3); 0: none.
      content_to_position, position_to_content: which scores are added.
      shared_projections: positions use the query and key projections of the content (v3), else their own.
      key_bias: whether the positions' own key projection has a bias (v2).
      norm: a layer norm on the table of positions.
    """

    max_distance: int
    buckets: int = 0
    content_to_position: bool = True
    position_to_content: bool = True
    shared_projections: bool = False
    key_bias: bool = True
    norm: bool = False

    @property
    def span(self) -> int:
        """Half the rows of the table of positions."""
        return self.buckets or self.max_distance


@dataclass(frozen=True)
class TransformerConfig:
    """A transformer, encoder or decoder, of any family.

    Attributes:
      family: the family whose file maps it to torch and back ("bert", "gpt2", "bart" ...).
      vocab_size: rows of the embedding table that are tokens.
      padded_vocab_size: rows that are stored; more than vocab_size only where a mesh needs it.
      hidden_size, num_layers, num_heads, head_dim, intermediate_size: the usual sizes.
      num_kv_heads: heads of keys and values, each shared by num_heads / num_kv_heads queries; None: num_heads.
      activation: a name of `ACTIVATIONS`.
      norm: "layer" or "rms" (no centring, no bias); norm_eps: added to the variance; norm_bias: of a layer norm;
        norm_scale_offset: added to the stored scale (Gemma: 1).
      norm_position: "pre", "post", "sandwich" or "res_post" (before each block, after each residual addition, before
        and after each block inside the residual, or only after it inside the residual, as in OLMo 2).
      residual_scale: factor on what each block adds to the residual stream (Granite).
      parallel_residual: attention and MLP read the same input (GPT-NeoX); parallel_norm: behind one norm (GPT-J).
      embedding_norm: a norm on the sum of embeddings; positions_after_norm: they are added after it. final_norm: one
        after the last layer.
      positions: "learned", "sinusoidal", "sinusoidal_wide" (XGLM's frequencies) or "none": what is added to the tokens.
      max_positions: the longest sequence; rows of a learned table, `position_offset` not counted.
      length_limit: a shorter limit, and what to do about it; None: there is none.
      position_offset: rows of the table in front of position 0 (BART: 2).
      position_pad_id: positions count the tokens that are not this one; that one has the row before the first
        (RoBERTa). positions_from_mask: positions count the tokens that the mask shows (OPT).
      type_vocab_size: token types; 0 for none. task_vocab_size: a second such table, of which row 0 is added (ERNIE).
      embedding_size: width of the embedding tables; None: hidden_size, else a projection follows the norm, or
        (embedding_projection "tokens") stands between token table and sum. embedding_projection_bias: its bias.
      own_token_id: a token whose embedding is a parameter of its own, not scaled (T5Gemma 2's end of image).
      padding_idx: the row of the token table that a look-up gives no gradient (torch.nn.Embedding's); None: there is
        none. With position_pad_id, the row before the first position has none either.
      embedding_scale: factor on the token embeddings; scale_given_embeddings: also on those of inputs_embeds.
      relative_bias, disentangled: see there.
      causal: a token sees itself and earlier tokens.
      attention_bias: of query, key and value; attention_key_bias: None means attention_bias; attention_out_bias: of the
        output; query_key_norm: an RMS norm on each head's queries and keys; query_key_norm_all_heads: one norm over
        all heads together (OLMo 2); attention_softcap: scores are cap * tanh(scores / cap).
      mlp_gated: activation(gate) * up; mlp_bias: of its projections.
      cross_attention_size: width of the encoder states that the cross-attention reads; None for no cross-attention.
      merged_attention: there is no block of cross-attention; the self-attention has the source's keys and values too,
        by its own projections, without positions, in one softmax (T5Gemma 2).
      shared_layers: for each layer, the number of the parameters that it uses (ALBERT); None: each has its own.
      head: whether there is a language-model head; head_transform (dense, activation, norm before it),
        head_transform_bias (of that dense layer), head_activation (None: `activation`),
        head_size (width that the kernel reads, None: embedding_size),
        head_projection (a dense layer to that width, without bias, norm or activation),
        head_bias ("none", "trained", or "fixed": no gradient), tie_head (its kernel is the token embedding's table),
        head_scale (factor on the states), head_softcap (as for attention).
      dropout: after the embeddings and each block; attention_dropout: on attention weights; activation_dropout:
        inside the MLP; embedding_dropout: None means `dropout`.
      float16: protection against overflow in float16, and in no other dtype: "float32_residual" (T5: the residual
        stream and the MLP's last projection are float32, attention's output is clamped to finite values), "clamped"
        (BART's encoder: each layer's output is), or "plain" (none).
      initializer_range: standard deviation of new kernels and embeddings;
      residual_initializer_range: that of kernels that write to the residual stream; None means initializer_range.
      layer_pattern: settings of layer i are layer_pattern[i % len(layer_pattern)].
      source_json: the `config.json` that this was made from, so that unknown fields survive a round trip.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    head_dim: int | None = None
    num_kv_heads: int | None = None
    padded_vocab_size: int | None = None
    activation: str = "gelu"
    norm: str = "layer"
    norm_eps: float = 1e-12
    norm_bias: bool = True
    norm_scale_offset: float = 0.0
    norm_position: str = "post"
    residual_scale: float = 1.0
    parallel_residual: bool = False
    parallel_norm: bool = False
    embedding_norm: bool = True
    positions_after_norm: bool = False
    final_norm: bool = False
    positions: str = "learned"
    max_positions: int = 512
    length_limit: tuple[int, str] | None = None
    position_offset: int = 0
    position_pad_id: int | None = None
    positions_from_mask: bool = False
    type_vocab_size: int = 0
    task_vocab_size: int = 0
    embedding_size: int | None = None
    embedding_projection: str = "sum"
    embedding_projection_bias: bool = True
    padding_idx: int | None = None
    embedding_scale: float = 1.0
    own_token_id: int | None = None
    scale_given_embeddings: bool = False
    relative_bias: RelativeBias | None = None
    disentangled: Disentangled | None = None
    causal: bool = False
    attention_bias: bool = True
    attention_key_bias: bool | None = None
    attention_out_bias: bool = True
    query_key_norm: bool = False
    query_key_norm_all_heads: bool = False
    attention_softcap: float | None = None
    mlp_gated: bool = False
    mlp_bias: bool = True
    cross_attention_size: int | None = None
    merged_attention: bool = False
    shared_layers: tuple[int, ...] | None = None
    head: bool = False
    head_transform: bool = False
    head_transform_bias: bool = True
    head_activation: str | None = None
    head_size: int | None = None
    head_projection: bool = False
    head_bias: str = "none"
    tie_head: bool = True
    head_scale: float = 1.0
    head_softcap: float | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    embedding_dropout: float | None = None
    float16: str = "plain"
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
        derived = {
            "head_dim": self.hidden_size // self.num_heads,
            "num_kv_heads": self.num_heads,
            "padded_vocab_size": self.vocab_size,
            "embedding_size": self.hidden_size,
        }
        for name, value in derived.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        longest = min((rotary.longest for rotary in self.rotaries if rotary.longest is not None), default=None)
        if longest is not None and self.length_limit is None:
            object.__setattr__(self, "length_limit", (longest, LONG_ROPE))
        if self.head_size is None:
            object.__setattr__(self, "head_size", self.embedding_size)
        check(
            self.num_heads % self.num_kv_heads == 0,
            f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}; give sizes that divide",
        )
        check(
            self.padded_vocab_size >= self.vocab_size,
            f"padded_vocab_size {self.padded_vocab_size} is below vocab_size {self.vocab_size}; give at least that",
        )
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if not (name == "head_activation" and value is None):
                check(value in known, f"{name} {value!r} is unknown: {nearest(str(value), known)}")
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            value = getattr(self, name)
            check(0.0 <= value < 1.0, f"TransformerConfig.{name} is {value!r}; give a rate from 0 to below 1")
        check(
            not self.merged_attention or self.cross_attention_size in (None, self.hidden_size),
            f"merged attention reads states of its own width {self.hidden_size}, and cross_attention_size is"
            f" {self.cross_attention_size}; leave it out",
        )
        check(len(self.layer_pattern) > 0, "layer_pattern is empty; give at least one LayerSettings")

    def layer(self, index: int) -> LayerSettings:
        """Settings of layer `index` (from 0)."""
        return self.layer_pattern[index % len(self.layer_pattern)]

    @property
    def stored_layers(self) -> int:
        """How many layers have parameters."""
        return self.num_layers if self.shared_layers is None else max(self.shared_layers) + 1

    @property
    def windows(self) -> tuple[tuple[int, int] | None, ...]:
        """The different windows of the layers (`LayerSettings.reach`), in order of appearance."""
        return tuple(dict.fromkeys(self.layer(i).reach for i in range(self.num_layers)))

    @property
    def rotaries(self) -> tuple[Rotary, ...]:
        """The different rotary embeddings of the layers, in order of appearance."""
        rotaries = dict.fromkeys(self.layer(i).rotary for i in range(self.num_layers))
        return tuple(rotary for rotary in rotaries if rotary is not None)

    @property
    def source(self) -> dict[str, Any]:
        """The fields of the `config.json` that this was made from."""
        return json.loads(self.source_json)


TIES = (False, True, "embeddings")
LABELS_SHIFTS = ("start", "last")
PAIR = "encoder-decoder"


@dataclass(frozen=True)
class Alias:
    """A parameter, or a subtree of parameters, that is stored once and used in a second place.

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
      decoder_start_token_id, pad_token_id: for shifting labels right; None until known.
      eos_token_ids: tokens that end a sequence.
      tie_encoder_decoder: False, True (everything that both sides have), "embeddings" (the token table), or aliases.
      labels_shift: which token a target begins with where the decoder's inputs are made of labels: "start", the start
        token, or "last", the label's last token (mBART's language).
      model_type: "encoder-decoder", or that of a whole sequence-to-sequence model ("bart", "t5" ...).
      source_json: the pair's own `config.json`.
    """

    encoder: TransformerConfig
    decoder: TransformerConfig
    decoder_start_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    tie_encoder_decoder: bool | str | tuple[Alias, ...] = False
    model_type: str = PAIR
    labels_shift: str = "start"
    source_json: str = field(default="{}", compare=False, repr=False)

    def __post_init__(self):
        check(self.decoder.cross_attention_size is not None, "the decoder of a pair needs cross_attention_size")
        check(self.decoder.head, "the decoder of a pair needs a language-model head (head=True)")
        if not isinstance(self.tie_encoder_decoder, tuple):
            check(
                self.tie_encoder_decoder in TIES,
                f"tie_encoder_decoder is {self.tie_encoder_decoder!r}; give False, True, 'embeddings' or aliases",
            )
        check(
            self.labels_shift in LABELS_SHIFTS,
            f"labels_shift {self.labels_shift!r} is unknown: {nearest(str(self.labels_shift), LABELS_SHIFTS)}",
        )
        named = {"decoder_start_token_id": self.decoder_start_token_id, "pad_token_id": self.pad_token_id}
        for name, value in [*named.items(), *(("eos_token_id", value) for value in self.eos_token_ids)]:
            if value is not None:
                check(
                    0 <= value < self.decoder.vocab_size,
                    f"{name} {value} is outside the decoder's vocabulary of {self.decoder.vocab_size}",
                )

    @property
    def is_pair(self) -> bool:
        """Whether it joins two checkpoints; else it is a sequence-to-sequence model of one class."""
        return self.model_type == PAIR

    @property
    def has_projection(self) -> bool:
        """Whether `enc_to_dec_proj` projects the encoder's states to the width that the decoder reads."""
        return self.encoder.hidden_size != self.decoder.cross_attention_size

    @property
    def source(self) -> dict[str, Any]:
        return json.loads(self.source_json)
