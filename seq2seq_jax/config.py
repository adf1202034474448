"""Settings as frozen dataclasses: what a transformer is, what a pair is, how it generates. Validation, no behaviour."""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish", "tanh")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the known name nearest to `name`, and the known ones (of many, the near ones)."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=5, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(known)}" if len(known) <= 20 else f"{hint}near it: {', '.join(close)}"


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


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
            _check(
                isinstance(value, int) and value > 0,
                f"TransformerConfig.{name} is {value!r}; give a whole number above 0",
            )
        if self.head_dim is None:
            _check(
                self.hidden_size % self.num_heads == 0,
                f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}; give head_dim, or sizes"
                " that divide",
            )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        if self.padded_vocab_size is None:
            object.__setattr__(self, "padded_vocab_size", self.vocab_size)
        _check(
            self.padded_vocab_size >= self.vocab_size,
            f"padded_vocab_size {self.padded_vocab_size} is below vocab_size {self.vocab_size}; give at least that",
        )
        _check(
            self.activation in ACTIVATIONS,
            f"activation {self.activation!r} is unknown: {nearest(self.activation, ACTIVATIONS)}",
        )
        _check(
            self.norm_position in ("pre", "post"), f"norm_position {self.norm_position!r} is neither 'pre' nor 'post'"
        )
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            value = getattr(self, name)
            _check(0.0 <= value < 1.0, f"TransformerConfig.{name} is {value!r}; give a rate from 0 to below 1")
        _check(len(self.layer_pattern) > 0, "layer_pattern is empty; give at least one LayerSettings")

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
        _check(self.source != self.target, f"the alias of {self.source!r} points to itself")


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
        _check(self.decoder.cross_attention_size is not None, "the decoder of a pair needs cross_attention_size")
        _check(self.decoder.head, "the decoder of a pair needs a language-model head (head=True)")
        if not isinstance(self.tie_encoder_decoder, tuple):
            _check(
                self.tie_encoder_decoder in TIES,
                f"tie_encoder_decoder is {self.tie_encoder_decoder!r}; give False, True, 'embeddings' or aliases",
            )
        named = {"decoder_start_token_id": self.decoder_start_token_id, "pad_token_id": self.pad_token_id}
        for name, value in [*named.items(), *(("eos_token_id", value) for value in self.eos_token_ids)]:
            if value is not None:
                _check(
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


@dataclass(frozen=True)
class GenerationConfig:
    """How to decode (transformers.GenerationConfig: same names, meanings and defaults).

    Lengths count decoder tokens, the start token included, in max_length and min_length, and not in max_new_tokens
    and min_new_tokens, which win. max_length None is 20 tokens beyond the prompt.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    do_sample: bool = False
    num_beams: int = 1
    num_return_sequences: int = 1
    early_stopping: bool | str = False
    length_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | tuple[int, ...] | None = None
    decoder_start_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    bos_token_id: int | None = None

    def __post_init__(self):
        for name in ("eos_token_id", "forced_eos_token_id"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        for name, low in (("num_beams", 1), ("num_return_sequences", 1), ("no_repeat_ngram_size", 0), ("top_k", 0)):
            value = getattr(self, name)
            _check(isinstance(value, int) and value >= low, f"{name} is {value!r}; give a whole number from {low} up")
        for name in ("max_length", "max_new_tokens"):
            value = getattr(self, name)
            _check(
                value is None or (isinstance(value, int) and value > 0),
                f"{name} is {value!r}; give a whole number above 0",
            )
        _check(
            self.early_stopping in (True, False, "never"),
            f"early_stopping is {self.early_stopping!r}; give True, False or 'never'",
        )
        _check(self.temperature > 0, f"temperature is {self.temperature!r}; give a number above 0, or do_sample=False")
        _check(0 < self.top_p <= 1, f"top_p is {self.top_p!r}; give a number above 0, up to 1")
        _check(self.repetition_penalty > 0, f"repetition_penalty is {self.repetition_penalty!r}; give a number above 0")

    def replace(self, **changes: Any) -> GenerationConfig:
        """A copy with `changes`; an unknown name is an error that names the nearest."""
        names = {f.name for f in dataclasses.fields(self)}
        for name in changes:
            _check(name in names, f"generation setting {name!r} is unknown: {nearest(name, names)}")
        return dataclasses.replace(self, **changes)


def generation_from_hf(*sources: Mapping[str, Any]) -> GenerationConfig:
    """Merges generation settings from the places where they hide; a later source wins.

    Args:
      sources: JSON objects, weakest first: the decoder's sub-config, the pair's config.json, generation_config.json.
        Fields that are null or of no concern to generation are passed over.

    Returns:
      The settings; fields that no source names keep their defaults.
    """
    names = {f.name for f in dataclasses.fields(GenerationConfig)}
    merged: dict[str, Any] = {}
    for source in sources:
        merged.update({k: v for k, v in source.items() if k in names and v is not None})
    return GenerationConfig(**merged)


def generation_to_hf(config: GenerationConfig, source: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `generation_config.json`: `source` (unknown fields kept) with the settings that differ from
    torch's defaults or stand in `source`."""
    out = dict(source)
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        value = list(value) if isinstance(value, tuple) else value
        if f.name in out or value != f.default:
            out[f.name] = value
    return out


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from and how long they may be.

    Attributes:
      train, validation: a .jsonl (.gz, .xz) file, or a shipped set ("debian-synopsis:train").
      source_field, target_field: the columns.
      max_source_length, max_target_length: in tokens, special ones included; longer texts are cut.
      train_limit, validation_limit: at most so many examples; None for all.
    """

    train: str
    validation: str
    source_field: str = "document"
    target_field: str = "summary"
    max_source_length: int = 512
    max_target_length: int = 64
    train_limit: int | None = None
    validation_limit: int | None = None


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up, then linear decay to `final_fraction` of the peak at the last step.

    Attributes:
      clip_norm: the global gradient norm is cut to this; None for no clipping.
    """

    learning_rate: float = 5e-5
    warmup_steps: int = 0
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float | None = 1.0


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; -1 is what is left."""

    replica: int = 1
    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class TrainConfig:
    """One fine-tuning run.

    Attributes:
      encoder, decoder: checkpoint directories or hub ids; their tokenizers are read beside them.
      warm_start: arguments of from_encoder_decoder_pretrained.
      generation: settings for decoding the validation set, kept with the model.
      random_weights: ignore the checkpoints' weights, for comparison.
      batch_size: examples in a step, over all devices. num_steps: optimizer steps.
      log_every: steps between lines of metrics.jsonl. eval_batch_size: rows decoded at once.
      seed: of new weights, the order of examples and dropout.
    """

    encoder: str
    decoder: str
    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    warm_start: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    random_weights: bool = False
    batch_size: int = 32
    num_steps: int = 1000
    log_every: int = 10
    eval_batch_size: int = 16
    remat: str = "none"
    seed: int = 0

    def __post_init__(self):
        for name in ("batch_size", "num_steps", "log_every", "eval_batch_size"):
            _check(getattr(self, name) > 0, f"{name} is {getattr(self, name)!r}; give a whole number above 0")


def from_mapping(cls: type, values: Mapping[str, Any], where: str = "config") -> Any:
    """A dataclass from a mapping (an ml_collections.ConfigDict, say), nested ones too.

    Raises:
      ValueError: for a key that the dataclass lacks (names the nearest), or one that it needs.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for name in values:
        _check(name in fields, f"{where}.{name} is unknown: {nearest(name, fields)}")
    for name, f in fields.items():
        needed = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        _check(values.get(name) is not None or not needed, f"{where}.{name} is missing; give it a value")
    out = {}
    for name, value in values.items():
        hint = hints[name]
        nested = dataclasses.is_dataclass(hint) and isinstance(value, Mapping)
        out[name] = from_mapping(hint, value, f"{where}.{name}") if nested else value
    return cls(**out)


def parse_settings(assignments: Iterable[str]) -> dict[str, Any]:
    """name=value texts from a command line; values are read as JSON where they are such (true, 3, [1, 2])."""
    out = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        _check(bool(name and equals), f"setting {assignment!r} is unreadable; write it as name=value")
        try:
            out[name] = json.loads(value)
        except json.JSONDecodeError:
            out[name] = value
    return out
