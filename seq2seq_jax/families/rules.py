"""Rules that name a parameter on both sides: one table, read forwards to import and backwards to export.

A rule is (torch name, flax paths, op). An op is a pair of inverse functions on numpy arrays, so that a round trip gives
every tensor back bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from seq2seq_jax.config import TransformerConfig

Array = np.ndarray
ROLES = ("encoder", "decoder")


class Op(NamedTuple):
    """forward: the torch tensor to the flax arrays of a rule. inverse: back."""

    forward: Callable[[Array], tuple[Array, ...]]
    inverse: Callable[[Sequence[Array]], Array]


IDENTITY = Op(lambda t: (t,), lambda a: a[0])
TRANSPOSE = Op(lambda t: (t.T,), lambda a: a[0].T)


def linear_in(heads: int, dim: int) -> Op:
    """torch Linear [heads * dim, features] to [features, heads, dim]."""
    return Op(lambda t: (t.T.reshape(-1, heads, dim),), lambda a: a[0].reshape(-1, heads * dim).T)


def linear_out(heads: int, dim: int) -> Op:
    """torch Linear [features, heads * dim] to [heads, dim, features]."""
    return Op(lambda t: (t.T.reshape(heads, dim, -1),), lambda a: a[0].reshape(heads * dim, -1).T)


def fused_in(heads: Sequence[int], dim: int, *, per_head: bool = False, transposed: bool = True) -> Op:
    """Fused projections to one array [..., heads, dim] for each number in `heads`.

    Args:
      per_head: one head's parts stand together (GPT-NeoX), not one part's heads.
      transposed: torch's Linear [outputs, features]; else Conv1D [features, outputs]. Biases pass either way.
    """

    def forward(t):
        t = t.T if transposed else t
        if per_head:
            t = t.reshape(*t.shape[:-1], heads[0], len(heads), dim)
            return tuple(t[..., i, :] for i in range(len(heads)))
        ends = np.cumsum(heads) * dim
        parts = np.split(t, ends[:-1], axis=-1)
        return tuple(part.reshape(*t.shape[:-1], n, dim) for part, n in zip(parts, heads))

    def inverse(arrays):
        if per_head:
            t = np.stack(arrays, axis=-2)
            t = t.reshape(*t.shape[:-3], -1)
        else:
            t = np.concatenate([x.reshape(*x.shape[:-2], -1) for x in arrays], axis=-1)
        return t.T if transposed else t

    return Op(forward, inverse)


def fused_rows(parts: int) -> Op:
    """Several torch Linears stacked to one [parts * outputs, features], as arrays [features, outputs]."""
    return Op(lambda t: tuple(np.split(t.T, parts, axis=-1)), lambda a: np.concatenate(a, axis=-1).T)


def split_first(heads: int, dim: int) -> Op:
    """[heads * dim, features] to [heads, dim, features]."""
    return Op(lambda t: (t.reshape(heads, dim, -1),), lambda a: a[0].reshape(heads * dim, -1))


def heads_bias(heads: int, dim: int) -> Op:
    """[heads * dim] to [heads, dim]."""
    return Op(lambda t: (t.reshape(heads, dim),), lambda a: a[0].reshape(heads * dim))


class Rule(NamedTuple):
    """One tensor.

    Attributes:
      torch: its name behind the side's prefix; "{layer}" stands for the layer's number.
      flax: the paths of its arrays in the transformer; "layers/{layer}/..." for a layer.
      head: the name stands alone, without the base model's prefix.
      also: other whole names under which files hold the same tensor.
    """

    torch: str
    flax: tuple[str, ...]
    op: Op = IDENTITY
    head: bool = False
    also: tuple[str, ...] = ()

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.torch


def rule(torch: str, flax: str | tuple[str, ...], op: Op = IDENTITY, **options: Any) -> Rule:
    return Rule(torch, (flax,) if isinstance(flax, str) else flax, op, **options)


def norm_rules(torch: str, flax: str, *, bias: bool = True, **options: Any) -> list[Rule]:
    """weight and bias of a layer norm, or (without bias) of an RMS norm."""
    weight = rule(f"{torch}.weight", f"{flax}/scale", **options)
    return [weight, rule(f"{torch}.bias", f"{flax}/bias", **options)] if bias else [weight]


def linear_rules(
    torch: str, flax: str, op: Op = TRANSPOSE, bias_op: Op = IDENTITY, *, bias: bool = True, **options: Any
) -> list[Rule]:
    """weight and bias of a linear layer."""
    weight = rule(f"{torch}.weight", f"{flax}/kernel", op, **options)
    return [weight, rule(f"{torch}.bias", f"{flax}/bias", bias_op, **options)] if bias else [weight]


def attention_rules(config: TransformerConfig, flax: str, query: str, key: str, value: str, out: str) -> list[Rule]:
    """Separate torch Linears for query, key, value and output."""
    d, table = config.head_dim, []
    key_bias = config.attention_bias if config.attention_key_bias is None else config.attention_key_bias
    for name, torch, heads, bias in (
        ("query", query, config.num_heads, config.attention_bias),
        ("key", key, config.num_kv_heads, key_bias),
        ("value", value, config.num_kv_heads, config.attention_bias),
    ):
        table += linear_rules(torch, f"{flax}/{name}", linear_in(heads, d), heads_bias(heads, d), bias=bias)
    out_op = linear_out(config.num_heads, d)
    return [*table, *linear_rules(out, f"{flax}/out", out_op, bias=config.attention_out_bias)]


@dataclass(frozen=True)
class Whole:
    """How a family lays out a sequence-to-sequence model of its own class.

    Attributes:
      architectures: model_type -> torch class.
      prefixes: role -> prefix of its names. shared: names of what both sides share, such as the token table.
      shared_by: the field of config.json that says whether they do; absent: they do.
      logits_bias: whether there is a `final_logits_bias`.
      last_label_first: model_types whose decoder inputs begin with the label's last token, not with a start token.
      nested: (config.json, role) -> the side's own config, where config.json has an encoder and a decoder section.
    """

    architectures: Mapping[str, str]
    prefixes: Mapping[str, str]
    shared: tuple[str, ...] = ()
    shared_by: str = "share_encoder_decoder_embeddings"
    logits_bias: bool = False
    last_label_first: tuple[str, ...] = ()
    nested: Callable[[Mapping[str, Any], str], Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Family:
    """How one family of checkpoints becomes a `TransformerConfig` and parameters, and back.

    Attributes:
      defaults: model_type of config.json -> the torch config class's defaults, for fields that config.json leaves out.
      from_hf: (config.json with defaults filled in, role) -> keyword arguments of TransformerConfig. padding_idx is
        pad_token_id where it is not among them: a family whose torch class has none, or another one, says so.
      rules: config -> the table of names.
      prefixes: role -> prefixes of the base model's names; the first is what a pair's file has. Roles that are missing
        are not supported.
      aside: role -> patterns (after the prefix) of tensors that nobody reads but export keeps.
      ignored: patterns of tensors that nobody needs. What has not the prefix is of another part of the checkpoint.
      renamed: other names by which callers may give config fields, such as torch's common ones; by role where the roles
        differ.
      aliases: other names of fields in config.json (the torch class's attribute_map); under a model_type: its own.
      old_rope: what stood in older files for the entries of rope_parameters (see `reading.rope_parameters`).
      torch_cross: whether the torch class, as a decoder, has cross-attention.
      head_by_file: the head is its own where a file has one that differs, whatever config.json says (T5).
      whole: for models of encoder and decoder.
    """

    name: str
    defaults: Mapping[str, Mapping[str, Any]]
    from_hf: Callable[[Mapping[str, Any], str], dict[str, Any]]
    rules: Callable[[TransformerConfig], list[Rule]]
    prefixes: Mapping[str, tuple[str, ...]]
    ignored: tuple[str, ...] = ()
    aside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    renamed: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, Any] = field(default_factory=dict)
    old_rope: Mapping[str, Any] = field(default_factory=lambda: {"rope_theta": "rope_theta"})
    torch_cross: bool = True
    head_by_file: bool = False
    whole: Whole | None = None

    @property
    def model_types(self) -> tuple[str, ...]:
        return tuple(self.defaults)

    def field(self, name: str, role: str) -> str:
        """The name in this family's config.json of a field that a caller may give under another one."""
        return {**self.renamed, **self.renamed.get(role, {})}.get(name, name)

    def aliases_of(self, model_type: str) -> dict[str, str]:
        """Other names of fields in a config.json of this model_type -> their own."""
        own = self.aliases.get(model_type, {})
        return {name: field for name, field in self.aliases.items() if isinstance(field, str)} | own
