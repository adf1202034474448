"""Rules that name a parameter on both sides: one table, read forwards to import and backwards to export.

A rule is (torch name, flax paths, op). An op is a pair of inverse functions on numpy arrays, so that a round trip gives
every tensor back bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


def split_last(parts: int, heads: int, dim: int) -> Op:
    """Fused [..., parts * heads * dim] to `parts` arrays [..., heads, dim] (GPT-2's Conv1D, not transposed)."""

    def forward(t):
        return tuple(x.reshape(*t.shape[:-1], heads, dim) for x in np.split(t, parts, axis=-1))

    return Op(forward, lambda a: np.concatenate([x.reshape(*x.shape[:-2], heads * dim) for x in a], axis=-1))


def split_first(heads: int, dim: int) -> Op:
    """[heads * dim, features] to [heads, dim, features]."""
    return Op(lambda t: (t.reshape(heads, dim, -1),), lambda a: a[0].reshape(heads * dim, -1))


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


def norm_rules(torch: str, flax: str, **options: Any) -> list[Rule]:
    """weight and bias of a layer norm."""
    return [
        rule(f"{torch}.weight", f"{flax}/scale", **options),
        rule(f"{torch}.bias", f"{flax}/bias", **options),
    ]


def linear_rules(torch: str, flax: str, op: Op = TRANSPOSE, bias: Op = IDENTITY, **options: Any) -> list[Rule]:
    """weight and bias of a linear layer."""
    return [
        rule(f"{torch}.weight", f"{flax}/kernel", op, **options),
        rule(f"{torch}.bias", f"{flax}/bias", bias, **options),
    ]


def attention_rules(config: TransformerConfig, flax: str, query: str, key: str, value: str, out: str) -> list[Rule]:
    """Separate torch Linears for query, key, value and output."""
    h, d = config.num_heads, config.head_dim
    bias = Op(lambda t: (t.reshape(h, d),), lambda a: a[0].reshape(h * d))
    rules = [r for n, t in (("query", query), ("key", key), ("value", value)) for r in
             linear_rules(t, f"{flax}/{n}", linear_in(h, d), bias)]  # fmt: skip
    return [*rules, *linear_rules(out, f"{flax}/out", linear_out(h, d))]


@dataclass(frozen=True)
class Family:
    """How one family of checkpoints becomes a `TransformerConfig` and parameters, and back.

    Attributes:
      model_types: the `model_type`s of config.json that it reads.
      defaults: the torch config class's defaults, for fields that config.json leaves out.
      from_hf: (config.json with defaults filled in, role) -> keyword arguments of TransformerConfig.
      fields: role -> {field of config.json: field of TransformerConfig}, what export writes back.
      rules: config -> the table of names.
      prefixes: role -> prefixes of the base model's names; the first is what a pair's file has.
      ignored, aside: patterns (after the prefix) of tensors that nobody needs, and that nobody reads but export keeps.
      other_part: role -> patterns (whole names) of what belongs to another part of the checkpoint.
      renamed: old names of config fields.
    """

    name: str
    model_types: tuple[str, ...]
    defaults: Mapping[str, Any]
    from_hf: Callable[[Mapping[str, Any], str], dict[str, Any]]
    fields: Mapping[str, Mapping[str, str]]
    rules: Callable[[TransformerConfig], list[Rule]]
    prefixes: Mapping[str, tuple[str, ...]]
    ignored: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    other_part: Mapping[str, tuple[str, ...]] = ()
    renamed: Mapping[str, str] = ()
