"""Files to parameters: which tensor fills which parameter, read one by one, onto the mesh; and the way back."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from seq2seq_jax.config import EncoderDecoderConfig, LayerSettings, TransformerConfig
from seq2seq_jax.families.registry import FAMILIES
from seq2seq_jax.families.rules import TRANSPOSE, Op, Rule, linear_rules, rule
from seq2seq_jax.models import ties
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.models.param_layouts import layer_location
from seq2seq_jax.parallel.axes import num_shards, partition_spec
from seq2seq_jax.parallel.multihost import to_host
from seq2seq_jax.weights.files import Checkpoint
from seq2seq_jax.weights.gguf_files import GgufCheckpoint
from seq2seq_jax.weights.report import Report
from seq2seq_jax.weights.soundness import FLOATS, count_not_finite, unfit_dtype

# [1, vocabulary], a buffer of torch's sequence-to-sequence classes.
LOGITS_BIAS = rule("final_logits_bias", "head/bias", Op(lambda t: (t[0],), lambda a: a[0][None]), head=True)


class Piece(NamedTuple):
    """Where one array of the model lies in torch's world.

    Attributes:
      names: names that may hold it; export writes the first.
      rule: its rule; part: which of the rule's arrays it is.
    """

    names: tuple[str, ...]
    rule: Rule
    part: int


@dataclass(frozen=True)
class Side:
    """One side of the pair, and the checkpoint that it is read from.

    Attributes:
      outer: the prefix of this side in a pair's file ("encoder."), or "" for a checkpoint of its own.
      keep: the file's layer for each of our layers.
      cut: whether layers were left out by an explicit option. resize: whether the position table may be resized.
      whole: it is half of a sequence-to-sequence model of its own class.
    """

    role: str
    config: TransformerConfig
    checkpoint: Checkpoint | GgufCheckpoint | None
    outer: str
    keep: tuple[int, ...]
    cut: bool = False
    resize: bool = False
    whole: bool = False

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What may stand before the names of the base model's tensors."""
        family = FAMILIES[self.config.family]
        return (*((family.whole.prefixes[self.role],) if self.whole else ()), *family.prefixes[self.role])

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """Prefixes that only the other half of a model of the family has, whose names may be alike."""
        others = {p for role, prefixes in FAMILIES[self.config.family].prefixes.items() for p in prefixes if p}
        return tuple(others - set(self.prefixes))

    def bases(self) -> Iterator[str]:
        """Names of the base model's tensors, without a prefix."""
        for each in FAMILIES[self.config.family].rules(self.config):
            if not each.head:
                yield from (each.torch.format(layer=n) for n in (self.keep if each.per_layer else (0,)))

    def wanted(self) -> list[str]:
        """Names under which the file may hold the base model's tensors."""
        return [f"{self.outer}{prefix}{base}" for prefix in self.prefixes for base in self.bases()]

    @cached_property
    def home(self) -> str:
        """The prefix, `outer` included, under which the file has most of them."""
        bases = list(self.bases())
        homes = [self.outer + prefix for prefix in self.prefixes]
        return max(homes, key=lambda home: sum(home + base in self.checkpoint for base in bases))

    def pieces(self) -> dict[str, Piece]:
        """Path of each layer's parameter ("encoder/layers/layers_0/...") -> where it lies."""
        family, out = FAMILIES[self.config.family], {}
        table = family.rules(self.config)
        if self.whole and self.config.head_bias == "fixed":
            table = [*table, LOGITS_BIAS]
        for each in table:
            for layer, source in enumerate(self.keep) if each.per_layer else [(0, 0)]:
                if each.per_layer and not _has(self.config.layer(layer), each.flax[0]):
                    continue
                base = each.torch.format(layer=source)
                names = (*(p + base for p in (("",) if each.head else self.prefixes)), *each.also)
                if self.whole:
                    names = (*(n for n in family.whole.shared if n in each.also), *names)
                for part, path in enumerate(each.flax):
                    path = path.replace("layers/{layer}", f"layers/layers_{layer}")
                    out[f"{self.role}/{path}"] = Piece(tuple(self.outer + n for n in names), each, part)
        return out

    def leftover(self, name: str) -> tuple[str, str] | None:
        """Status and detail of a tensor that fills no parameter; None if nothing explains it."""
        family = FAMILIES[self.config.family]
        for prefix in sorted(self.prefixes, key=len, reverse=True):
            base = name.removeprefix(self.outer + prefix)
            known = any(re.fullmatch(p, base) for p in family.aside.get(self.role, ()))
            if name.startswith(self.outer + prefix) and known:
                return "kept aside", base
        if not name.startswith(self.home):
            return "other part", ""
        base = name.removeprefix(self.home)
        if any(re.fullmatch(p, base) for p in family.ignored):
            return "ignored", "by name"
        layers = [r for r in family.rules(self.config) if r.per_layer]
        if self.cut and any(_names(r, base) for r in layers):
            return "cut", f"{self.config.num_layers} layers kept"
        if self.role == "encoder" and "decoder" in family.prefixes:
            crossed = family.rules(replace(self.config, cross_attention_size=self.config.hidden_size))
            known = {r.torch for r in layers}
            if any(r.torch not in known and _names(r, base) for r in crossed if r.per_layer):
                return "other part", "a decoder's cross-attention"
        return None


def _names(each: Rule, base: str) -> bool:
    """Whether a rule of layers is about the tensor `base` of any layer."""
    return re.fullmatch(re.escape(each.torch).replace(r"\{layer\}", r"\d+"), base) is not None


def _has(layer: LayerSettings, path: str) -> bool:
    """Whether a layer has the part that a parameter belongs to."""
    if "/cross_attention" in path:
        return layer.cross_attention
    return layer.attention_norm or "/self_attention_norm/" not in path


def projection_pieces(config: EncoderDecoderConfig) -> dict[str, Piece]:
    """enc_to_dec_proj stands beside the two sides."""
    if not config.has_projection:
        return {}
    table = linear_rules("enc_to_dec_proj", "enc_to_dec_proj", TRANSPOSE)
    return {each.flax[0]: Piece((each.torch,), each, 0) for each in table}


class Leaf(NamedTuple):
    """One stored array: its shape, logical axes, and the path of each row's parameter (one row: not stacked)."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    rows: tuple[str, ...]
    stacked: bool


def leaves(model: EncoderDecoder) -> dict[str, Leaf]:
    """Stored path -> `Leaf`, for the once-stored tree."""
    out = {}
    for path, box in flatten_dict(model.parameter_shapes(), sep="/").items():
        out[path] = Leaf(nn.unbox(box).shape, tuple(box.names), *layer_paths(model.config, path))
    return out


def layer_paths(config: EncoderDecoderConfig, path: str) -> tuple[tuple[str, ...], bool]:
    """Path of a stored array -> paths of its layers' parameters ("encoder/layers/layers_3/..."), and whether they are
    stacked along a leading axis; an array outside the layers, or of one layer, has its own path alone."""
    role, _, rest = path.partition("/layers/")
    if not rest:
        return (path,), False
    places = _layer_places(getattr(config, role))
    slot = next(slot for slot in places if rest.startswith(f"{slot}/"))
    layers, stacked = places[slot]
    return tuple(f"{role}/layers/layers_{i}{rest.removeprefix(slot)}" for i in layers), stacked


@functools.lru_cache(maxsize=64)
def _layer_places(config: TransformerConfig) -> dict[str, tuple[list[int], bool]]:
    """Subtree of the stack -> the layers that it holds, and whether they are stacked."""
    places: dict[str, tuple[list[int], bool]] = {}
    for i in range(config.stored_layers):
        slot, row = layer_location(config, i)
        places.setdefault(slot, ([], row is not None))[0].append(i)
    return places


def tied_rows(model: EncoderDecoder, stored: Mapping[str, Leaf]) -> dict[str, str]:
    """Path of a tied parameter -> path of the parameter that is stored for it, layer by layer."""
    full = leaves(model.clone(config=_untied(model.config)))
    sources = unflatten_dict({k: np.array(leaf.rows, dtype=object) for k, leaf in stored.items()}, sep="/")
    filled = flatten_dict(ties.fill(sources, model.aliases), sep="/")
    out = {}
    for path, rows in filled.items():
        if path not in stored:
            targets = full[path].rows
            if len(targets) != len(rows):
                raise ValueError(f"a tie gives {len(rows)} layers to {path!r}, which has {len(targets)}; give layers=")
            out.update(zip(targets, rows))
    return out


def _untied(config: EncoderDecoderConfig) -> EncoderDecoderConfig:
    return replace(config, tie_encoder_decoder=False, decoder=replace(config.decoder, tie_head=False))


class Loader:
    """Fills the parameter tree of a model from the files of its sides, and says what became of every tensor."""

    def __init__(
        self,
        model: EncoderDecoder,
        sides: Mapping[str, Side],
        report: Report,
        new_value: Callable[..., tuple[np.ndarray, str] | None],
        compare_ties: bool,
    ):
        """new_value(path, shape, read) gives a parameter that no file holds and how, or None if it must not be new."""
        self.model, self.sides, self.report, self.new_value = model, sides, report, new_value
        self.pieces = {**projection_pieces(model.config)}
        for side in sides.values():
            self.pieces.update(side.pieces())
        self.stored = leaves(model)
        self.exported = {path: piece.names[0] for path, piece in export_pieces(model.config).items()}
        self.aliases: dict[str, list[str]] = {}
        for target, source in tied_rows(model, self.stored).items():
            self.aliases.setdefault(source, []).append(target)
        self.compare_ties = compare_ties
        self.dtypes: dict[str, str] = {}
        self.aside: dict[str, np.ndarray] = {}
        self._used: set[tuple[str, str]] = set()

    def _side(self, path: str) -> Side:
        return self.sides.get(path.split("/")[0]) or self.sides["decoder"]

    def _found(self, path: str) -> tuple[Side, Piece, list[str]]:
        side, piece = self._side(path), self.pieces.get(path)
        names = [n for n in piece.names if side.checkpoint is not None and n in side.checkpoint] if piece else []
        return side, piece, names

    def _read(self, path: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """The parameter at `path` in the true vocabulary, from its own tensor or one it is tied with; else None."""
        value, first = None, ""
        for candidate in (path, *self.aliases.get(path, ())):
            side, piece, names = self._found(candidate)
            for name in names:
                tensor = self._tensor(side, name)
                if value is None:
                    value, original, first = self._convert(side, piece, name, tensor, shape), tensor, name
                    self.dtypes[self.exported[candidate]] = str(tensor.dtype)
                    self._say(side, name, "copied", side.checkpoint.origin(name))
                elif np.array_equal(original, tensor):
                    self._say(side, name, "tied", f"to {first}")
                elif candidate == path:
                    # A second tensor of one side, such as the bias that BERT's untied head does not add.
                    self.aside[name if side.outer or side.whole else f"{side.role}.{name}"] = np.array(tensor)
                    self._say(side, name, "kept aside", f"differs from {first}, which is used; written back on export")
                else:
                    self._say(side, name, "tied", f"to {first}")
                    if self.compare_ties:
                        self.report.note(f"{first} and {name} are tied but differ in the file; the first is used")
        return value

    def _tensor(self, side: Side, name: str) -> np.ndarray:
        """A tensor of a file; numbers that are not finite are noted, and warned of."""
        tensor, file = side.checkpoint.read(name), side.checkpoint.file_of(name)
        if tensor.dtype not in FLOATS:
            raise unfit_dtype(file, name, tensor.dtype)
        count = 0 if (side.role, name) in self._used else count_not_finite(tensor)
        if count:
            text = f"{file}: {count} of the {tensor.size} numbers of {name} are NaN or infinite"
            self.report.note(text)
            warnings.warn(text, stacklevel=2)
        return tensor

    def _say(self, side: Side, name: str, status: str, detail: str = "") -> None:
        """Reports a tensor once, also where several parameters are read from it."""
        if (side.role, name) not in self._used:
            self.report.add(side.role, name, status, detail)
            self._used.add((side.role, name))

    def _convert(self, side: Side, piece: Piece, name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        try:
            value = piece.rule.op.forward(tensor)[piece.part]
        except ValueError:
            value = np.empty(0)
        if value.shape != shape:
            if side.resize and piece.rule.flax[0] == "embeddings/position/embedding" and value.ndim == 2:
                value = resized_positions(value, shape[0])
                self._say(side, name, "resized", f"positions, {tensor.shape[0]} to {shape[0]}")
                return value
            flax = [np.empty(shape, np.int8)] * len(piece.rule.flax)
            raise ValueError(
                f"{side.checkpoint.file_of(name)}: {name} has shape {list(tensor.shape)}, and config.json asks for"
                f" {list(piece.rule.op.inverse(flax).shape)}; the two files do not belong together"
            )
        return value

    def _value(self, path: str, shape: tuple[int, ...]) -> np.ndarray:
        value = self._read(path, shape)
        if value is None:
            made = self.new_value(path, shape, self._value)
            if made is None:
                side, piece, _ = self._found(path)
                raise ValueError(
                    f"{side.checkpoint.directory} lacks the tensor {piece.names[0]!r}; it is not a whole {side.role}"
                    f" ({side.config.family}, {side.config.num_layers} layers)"
                )
            value, how = made
            self.report.add(path.split("/")[0], path, "initialised", how)
        return value

    def token_table(self, role: str) -> np.ndarray:
        """A side's token embeddings."""
        config = self.sides[role].config
        return self._value(f"{role}/{ties.EMBEDDING}", (config.vocab_size, config.embedding_size))

    def load(self, mesh: Mesh | None, dtype: Any) -> dict[str, Any]:
        """The once-stored parameter tree, each device holding its shard only."""
        out = {}
        for path, leaf in self.stored.items():
            config = self._side(path).config
            true = tuple(config.vocab_size if a == "vocab" else n for a, n in zip(leaf.axes, leaf.shape))
            rows = (self._value(row, true[1:] if leaf.stacked else true) for row in leaf.rows)
            out[path] = place(rows, leaf, mesh, dtype)
        for role, side in self.sides.items():
            self._leftovers(role, side)
        return unflatten_dict(out, sep="/")

    def _leftovers(self, role: str, side: Side) -> None:
        for name in side.checkpoint or ():
            if not name.startswith(side.outer) or (role, name) in self._used:
                continue
            status, detail = side.leftover(name) or (None, None)
            if status is None:
                raise ValueError(
                    f"{side.checkpoint.file_of(name)}: nothing is known about the tensor {name!r} in a"
                    f" {side.config.family} {role} of {side.config.num_layers} layers; to leave layers out, give"
                    f" {role}_num_hidden_layers or {role}_keep_layers"
                )
            if status == "kept aside":
                base, detail = detail, "written back on export"
                family = FAMILIES[side.config.family]
                outer = family.whole.prefixes[role] if side.whole else f"{role}.{family.prefixes[role][0]}"
                kept = f"{outer}{base}"
                self.aside[kept] = np.array(side.checkpoint.read(name))
            self.report.add(role, name, status, detail)


def export_pieces(config: EncoderDecoderConfig) -> dict[str, Piece]:
    """The pieces of a pair's own file."""
    pieces = projection_pieces(config)
    for role in ("encoder", "decoder"):
        side = getattr(config, role)
        outer, keep = f"{role}." if config.is_pair else "", tuple(range(side.stored_layers))
        pieces.update(Side(role, side, None, outer, keep, whole=not config.is_pair).pieces())
    return pieces


def place(rows: Iterator[np.ndarray], leaf: Leaf, mesh: Mesh | None, dtype: Any) -> jax.Array:
    """Rows to one array in `dtype`, the vocabulary padded with zeros, on the default device or split over `mesh`.

    The rows come one by one, so that the host holds one tensor beside the array.
    """
    whole = np.zeros(leaf.shape, dtype)
    for i, row in enumerate(rows):
        target = whole[i] if leaf.stacked else whole
        target[: row.shape[0]] = row
    if mesh is None:
        return jax.block_until_ready(jnp.array(whole, copy=True))
    return jax.make_array_from_callback(leaf.shape, leaf_sharding(leaf, mesh), lambda index: whole[index])


def leaf_sharding(leaf: Leaf, mesh: Mesh) -> NamedSharding:
    """Where a parameter lives on `mesh`.

    Raises:
      ValueError: if the mesh does not divide it; names sizes that would.
    """
    spec = partition_spec(leaf.axes, mesh)
    for axis, size, entry in zip(leaf.axes, leaf.shape, spec):
        count = num_shards(entry, mesh)
        if size % count:
            legal = ", ".join(str(n) for n in range(1, min(size, 64) + 1) if size % n == 0)
            raise ValueError(
                f"{leaf.rows[0]}: its {axis!r} axis of {size} cannot be split over {count} devices of the mesh axis"
                f" {entry!r}; give that mesh axis a size among {legal}"
            )
    return NamedSharding(mesh, spec)


def abstract_leaf(leaf: Leaf, mesh: Mesh | None, dtype: Any) -> jax.ShapeDtypeStruct:
    """A parameter's shape, dtype and place (None: the first device), without its numbers."""
    sharding = SingleDeviceSharding(jax.devices()[0]) if mesh is None else leaf_sharding(leaf, mesh)
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)


def abstract_params(model: EncoderDecoder, mesh: Mesh | None, dtype: Any) -> dict[str, Any]:
    """The tree that `Loader.load` makes, without its numbers; of a model in decoding form, that form's.

    Raises:
      ValueError: if the mesh does not divide a parameter.
    """
    return unflatten_dict({p: abstract_leaf(leaf, mesh, dtype) for p, leaf in leaves(model).items()}, sep="/")


def resized_positions(table: np.ndarray, rows: int) -> np.ndarray:
    """A position table cut, or lengthened by copies of its last row (Liu & Lapata 2019, for sources beyond 512)."""
    extra = max(0, rows - table.shape[0])
    return np.concatenate([table[:rows], np.repeat(table[-1:], extra, axis=0)])


def torch_tensors(model: EncoderDecoder, params: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Names of all tensors of the pair in torch's order of rules, each with a function that makes it."""
    full = flatten_dict(ties.fill(params, model.aliases), sep="/")
    locate: dict[str, tuple[str, int | None]] = {}
    for path, leaf in leaves(model.clone(config=_untied(model.config))).items():
        for i, row in enumerate(leaf.rows):
            locate[row] = (path, i if leaf.stacked else None)
    pieces = export_pieces(model.config)
    grouped: dict[str, dict[int, str]] = {}
    for path, piece in pieces.items():
        grouped.setdefault(piece.names[0], {})[piece.part] = path

    def make(parts: dict[int, str], rule: Rule) -> np.ndarray:
        arrays = []
        for part in range(len(rule.flax)):
            path, row = locate[parts[part]]
            array = full[path] if row is None else full[path][row]
            side = parts[part].split("/")[0]
            array = to_host(array)
            if side in ("encoder", "decoder") and rule.flax[part] in VOCAB_LEAVES:
                array = array[: getattr(model.config, side).vocab_size]
            arrays.append(array)
        return rule.op.inverse(arrays)

    for name, parts in grouped.items():
        rule = pieces[parts[0]].rule
        yield name, lambda parts=parts, rule=rule: make(parts, rule)


VOCAB_LEAVES = (ties.EMBEDDING, "head/kernel", "head/bias")
