"""Which tensors of a torch checkpoint hold which parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from seq2seq_jax.config import EncoderDecoderConfig, LayerSettings, TransformerConfig
from seq2seq_jax.families.registry import FAMILIES
from seq2seq_jax.families.rules import TRANSPOSE, Family, Op, Rule, linear_rules, rule
from seq2seq_jax.weights.files import Checkpoint
from seq2seq_jax.weights.gguf_files import GgufCheckpoint
from seq2seq_jax.weights.report import Report
from seq2seq_jax.weights.soundness import check_not_quantised
from seq2seq_jax.weights.state_dicts import rooted

# [1, vocabulary], a buffer of torch's sequence-to-sequence classes.
LOGITS_BIAS = rule("final_logits_bias", "head/bias", Op(lambda t: (t[0],), lambda a: a[0][None]), head=True)


class TensorRef(NamedTuple):
    """The torch tensor that holds one array of the model.

    Attributes:
      names: names that it may have; export writes the first.
      rule: its rule. index: which of the rule's arrays it is.
    """

    names: tuple[str, ...]
    rule: Rule
    index: int


@dataclass(frozen=True)
class SideCheckpoint:
    """One side of the pair, and the checkpoint that it is read from.

    Attributes:
      checkpoint: None where nothing is read (random weights, export).
      pair_prefix: the prefix of this side in a pair's file ("encoder."); "" in a checkpoint of its own.
      file_layers: the file's layer number of each of our layers.
      truncated: an explicit option leaves layers of the file out.
      resize_positions: an explicit option changes the length of the position table.
      is_seq2seq: the checkpoint is a sequence-to-sequence model of one class, of which this is half.
    """

    role: str
    config: TransformerConfig
    checkpoint: Checkpoint | GgufCheckpoint | None
    pair_prefix: str
    file_layers: tuple[int, ...]
    truncated: bool = False
    resize_positions: bool = False
    is_seq2seq: bool = False

    @property
    def family(self) -> Family:
        return FAMILIES[self.config.family]

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Prefixes that the base model's names may have, `pair_prefix` left out."""
        own = (self.family.seq2seq.prefixes[self.role],) if self.is_seq2seq else ()
        return (*own, *self.family.prefixes[self.role])

    @property
    def other_prefixes(self) -> tuple[str, ...]:
        """Prefixes of the family's other role alone; under them names may be alike."""
        prefixes = {p for of_role in self.family.prefixes.values() for p in of_role if p}
        return tuple(prefixes - set(self.prefixes))

    def base_names(self) -> Iterator[str]:
        """Names of the base model's tensors without a prefix."""
        for each in self.family.rules(self.config):
            if not each.head:
                yield from (each.torch.format(layer=n) for n in (self.file_layers if each.per_layer else (0,)))

    def expected_names(self) -> list[str]:
        """Names that the base model's tensors may have in the file."""
        return [f"{self.pair_prefix}{prefix}{base}" for prefix in self.prefixes for base in self.base_names()]

    @cached_property
    def file_prefix(self) -> str:
        """The prefix, `pair_prefix` included, under which the file has most of the base model's tensors."""
        names = list(self.base_names())
        prefixes = [self.pair_prefix + prefix for prefix in self.prefixes]
        return max(prefixes, key=lambda prefix: sum(prefix + base in self.checkpoint for base in names))

    def tensor_refs(self) -> dict[str, TensorRef]:
        """Path of each parameter, a layer's as "encoder/layers/layers_0/...", -> its tensor."""
        family, out = self.family, {}
        table = family.rules(self.config)
        if self.is_seq2seq and self.config.head_bias == "fixed":
            table = [*table, LOGITS_BIAS]
        for each in table:
            for layer, file_layer in enumerate(self.file_layers) if each.per_layer else [(0, 0)]:
                if each.per_layer and not _layer_has(self.config.layer(layer), each.flax[0]):
                    continue
                base = each.torch.format(layer=file_layer)
                names = (*(p + base for p in (("",) if each.head else self.prefixes)), *each.also)
                if self.is_seq2seq:
                    names = (*(n for n in family.seq2seq.shared if n in each.also), *names)
                for index, path in enumerate(each.flax):
                    path = path.replace("layers/{layer}", f"layers/layers_{layer}")
                    out[f"{self.role}/{path}"] = TensorRef(tuple(self.pair_prefix + n for n in names), each, index)
        return out

    def passthrough_name(self, name: str) -> str | None:
        """The name in our export of a tensor that no forward pass reads but export keeps; None: it is another."""
        family = self.family
        pair_prefix = f"{self.role}.{family.prefixes[self.role][0]}"
        export_prefix = family.seq2seq.prefixes[self.role] if self.is_seq2seq else pair_prefix
        for prefix in sorted(self.prefixes, key=len, reverse=True):
            full = self.pair_prefix + prefix
            base = name.removeprefix(full)
            if name.startswith(full) and any(re.fullmatch(p, base) for p in family.passthrough.get(self.role, ())):
                return export_prefix + base
        return None

    def why_unused(self, name: str) -> tuple[str, str] | None:
        """Status and detail for the report of a tensor that fills no parameter; None if nothing explains it."""
        family = self.family
        if not name.startswith(self.file_prefix):
            return "other part", ""
        base = name.removeprefix(self.file_prefix)
        if any(re.fullmatch(p, base) for p in family.ignored):
            return "ignored", "by name"
        layers = [r for r in family.rules(self.config) if r.per_layer]
        if self.truncated and any(_is_of(r, base) for r in layers):
            return "cut", f"{self.config.num_layers} layers kept"
        if self.role == "encoder" and "decoder" in family.prefixes:
            crossed = family.rules(replace(self.config, cross_attention_size=self.config.hidden_size))
            known = {r.torch for r in layers}
            if any(r.torch not in known and _is_of(r, base) for r in crossed if r.per_layer):
                return "other part", "a decoder's cross-attention"
        return None


def _is_of(each: Rule, base: str) -> bool:
    """Whether the tensor `base` is that of a rule for layers, in any layer."""
    return re.fullmatch(re.escape(each.torch).replace(r"\{layer\}", r"\d+"), base) is not None


def _layer_has(layer: LayerSettings, path: str) -> bool:
    """Whether a layer has the submodule that a parameter belongs to."""
    if "/cross_attention" in path:
        return layer.cross_attention
    return layer.attention_norm or "/self_attention_norm/" not in path


def one_file(config: EncoderDecoderConfig, checkpoint: Any = None) -> dict[str, SideCheckpoint]:
    """Both sides of a pair, or of a sequence-to-sequence model, whose tensors are in one checkpoint."""
    out = {}
    for role in ("encoder", "decoder"):
        side = getattr(config, role)
        prefix, layers = f"{role}." if config.is_pair else "", tuple(range(side.stored_layers))
        out[role] = SideCheckpoint(role, side, checkpoint, prefix, layers, is_seq2seq=not config.is_pair)
    return out


def projection_refs(config: EncoderDecoderConfig) -> dict[str, TensorRef]:
    """Those of enc_to_dec_proj, which belongs to neither side."""
    if not config.has_projection:
        return {}
    table = linear_rules("enc_to_dec_proj", "enc_to_dec_proj", TRANSPOSE)
    return {each.flax[0]: TensorRef((each.torch,), each, 0) for each in table}


def export_refs(config: EncoderDecoderConfig) -> dict[str, TensorRef]:
    """Those of a pair's own file."""
    refs = projection_refs(config)
    for side in one_file(config).values():
        refs.update(side.tensor_refs())
    return refs


def rooted_sides(
    checkpoint: Any, hf: Mapping[str, Any], sides: Mapping[str, SideCheckpoint], what: str, report: Report
) -> Any:
    """The checkpoint of `sides`, its names without what its writer put in front of them.

    Args:
      what: "encoder" or "decoder", the one role of `sides`, or "pair".

    Raises:
      ValueError: if it is quantised, or not a checkpoint of `sides`.
    """
    check_not_quantised(checkpoint, hf, checkpoint.directory)
    expected = [name for side in sides.values() for name in side.expected_names()]
    others = sides[what].other_prefixes if what in sides else ()
    return rooted(checkpoint, expected, f"{hf['model_type']} {what}", what, report, others)
