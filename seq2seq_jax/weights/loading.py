"""Torch checkpoints to parameters: each tensor is read, converted by its rule and placed on the mesh, one by one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh

from seq2seq_jax.models import ties
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.weights.params import param_specs, place, tied_paths
from seq2seq_jax.weights.report import Report
from seq2seq_jax.weights.soundness import FLOATS, count_not_finite, unfit_dtype
from seq2seq_jax.weights.tensor_names import SideCheckpoint, TensorRef, export_refs, projection_refs


class Loader:
    """Fills the parameter tree of a model from the checkpoints of its sides, and reports what became of every tensor.

    Attributes:
      dtypes: the file's dtype of each tensor that was read, by its name in our export.
      passthrough: tensors that no forward pass reads, by their name in our export.
    """

    def __init__(
        self,
        model: EncoderDecoder,
        sides: Mapping[str, SideCheckpoint],
        report: Report,
        init_missing: Callable[..., tuple[np.ndarray, str] | None],
        compare_ties: bool,
    ):
        """Reads nothing yet.

        Args:
          init_missing: (path, shape, read) -> a parameter that no file holds, and the word for the report; None if a
            file must hold it. `read` gives other parameters by path and shape.
          compare_ties: whether the report notes tied tensors that differ in the file.
        """
        self.model, self.sides, self.report, self.init_missing = model, sides, report, init_missing
        self.refs = {**projection_refs(model.config)}
        for side in sides.values():
            self.refs.update(side.tensor_refs())
        self.specs = param_specs(model)
        self.export_names = {path: ref.names[0] for path, ref in export_refs(model.config).items()}
        self.tied_to: dict[str, list[str]] = {}
        for target, source in tied_paths(model, self.specs).items():
            self.tied_to.setdefault(source, []).append(target)
        self.compare_ties = compare_ties
        self.dtypes: dict[str, str] = {}
        self.passthrough: dict[str, np.ndarray] = {}
        self._reported: set[tuple[str, str]] = set()

    def _side_of(self, path: str) -> SideCheckpoint:
        return self.sides.get(path.split("/")[0]) or self.sides["decoder"]

    def _lookup(self, path: str) -> tuple[SideCheckpoint, TensorRef | None, list[str]]:
        """The side of a parameter, its tensor, and under which names the checkpoint has that."""
        side, ref = self._side_of(path), self.refs.get(path)
        names = [n for n in ref.names if side.checkpoint is not None and n in side.checkpoint] if ref else []
        return side, ref, names

    def _read(self, path: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """The parameter at `path`, the vocabulary not padded, from its own tensor or one that it is tied to."""
        value, first = None, ""
        for candidate in (path, *self.tied_to.get(path, ())):
            side, ref, names = self._lookup(candidate)
            for name in names:
                tensor = self._tensor(side, name)
                if value is None:
                    value, original, first = self._convert(side, ref, name, tensor, shape), tensor, name
                    self.dtypes[self.export_names[candidate]] = str(tensor.dtype)
                    self._record(side, name, "copied", side.checkpoint.origin(name))
                elif np.array_equal(original, tensor):
                    self._record(side, name, "tied", f"to {first}")
                elif candidate == path:
                    # A second tensor of one side, such as the bias that BERT's untied head does not add.
                    export_name = name if side.pair_prefix or side.is_seq2seq else f"{side.role}.{name}"
                    self.passthrough[export_name] = np.array(tensor)
                    detail = f"differs from {first}, which is used; written back on export"
                    self._record(side, name, "passed through", detail)
                else:
                    self._record(side, name, "tied", f"to {first}")
                    if self.compare_ties:
                        self.report.note(f"{first} and {name} are tied but differ in the file; the first is used")
        return value

    def _tensor(self, side: SideCheckpoint, name: str) -> np.ndarray:
        """A tensor of a file. Numbers that are not finite are noted, and warned of."""
        tensor, file = side.checkpoint.read(name), side.checkpoint.file_of(name)
        if tensor.dtype not in FLOATS:
            raise unfit_dtype(file, name, tensor.dtype)
        count = 0 if (side.role, name) in self._reported else count_not_finite(tensor)
        if count:
            text = f"{file}: {count} of the {tensor.size} numbers of {name} are NaN or infinite"
            self.report.note(text)
            warnings.warn(text, stacklevel=2)
        return tensor

    def _record(self, side: SideCheckpoint, name: str, status: str, detail: str = "") -> None:
        """Reports a tensor once, also where several parameters are read from it."""
        if (side.role, name) not in self._reported:
            self.report.add(side.role, name, status, detail)
            self._reported.add((side.role, name))

    def _convert(
        self, side: SideCheckpoint, ref: TensorRef, name: str, tensor: np.ndarray, shape: tuple[int, ...]
    ) -> np.ndarray:
        try:
            value = ref.rule.op.forward(tensor)[ref.index]
        except ValueError:
            value = np.empty(0)
        if value.shape != shape:
            if side.resize_positions and ref.rule.flax[0] == "embeddings/position/embedding" and value.ndim == 2:
                value = resized_positions(value, shape[0])
                self._record(side, name, "resized", f"positions, {tensor.shape[0]} to {shape[0]}")
                return value
            arrays = [np.empty(shape, np.int8)] * len(ref.rule.flax)
            raise ValueError(
                f"{side.checkpoint.file_of(name)}: {name} has shape {list(tensor.shape)}, and config.json asks for"
                f" {list(ref.rule.op.inverse(arrays).shape)}; the two files do not belong together"
            )
        return value

    def _value(self, path: str, shape: tuple[int, ...]) -> np.ndarray:
        value = self._read(path, shape)
        if value is None:
            initial = self.init_missing(path, shape, self._value)
            if initial is None:
                side, ref, _ = self._lookup(path)
                raise ValueError(
                    f"{side.checkpoint.directory} lacks the tensor {ref.names[0]!r}; it is not a whole {side.role}"
                    f" ({side.config.family}, {side.config.num_layers} layers)"
                )
            value, how = initial
            self.report.add(path.split("/")[0], path, "initialised", how)
        return value

    def token_table(self, role: str) -> np.ndarray:
        """A side's token embeddings [vocabulary, embedding size]."""
        config = self.sides[role].config
        return self._value(f"{role}/{ties.EMBEDDING}", (config.vocab_size, config.embedding_size))

    def load(self, mesh: Mesh | None, dtype: Any) -> dict[str, Any]:
        """The stored parameter tree; each device of `mesh` holds its shard only."""
        out = {}
        for path, spec in self.specs.items():
            config = self._side_of(path).config
            shape = tuple(config.vocab_size if a == "vocab" else n for a, n in zip(spec.axes, spec.shape))
            rows = (self._value(parameter, shape[1:] if spec.stacked else shape) for parameter in spec.paths)
            out[path] = place(rows, spec, mesh, dtype)
        for side in self.sides.values():
            self._report_unused(side)
        return unflatten_dict(out, sep="/")

    def _report_unused(self, side: SideCheckpoint) -> None:
        """Reports the tensors of a side that fill no parameter.

        Raises:
          ValueError: for one that nothing explains.
        """
        for name in side.checkpoint or ():
            if not name.startswith(side.pair_prefix) or (side.role, name) in self._reported:
                continue
            if export_name := side.passthrough_name(name):
                self.passthrough[export_name] = np.array(side.checkpoint.read(name))
                self._record(side, name, "passed through", "written back on export")
                continue
            reason = side.why_unused(name)
            if reason is None:
                raise ValueError(
                    f"{side.checkpoint.file_of(name)}: nothing is known about the tensor {name!r} in a"
                    f" {side.config.family} {side.role} of {side.config.num_layers} layers; to leave layers out, give"
                    f" {side.role}_num_hidden_layers or {side.role}_keep_layers"
                )
            self._record(side, name, *reason)


def resized_positions(table: np.ndarray, rows: int) -> np.ndarray:
    """A position table cut, or lengthened by copies of its last row (Liu & Lapata 2019, for sources beyond 512)."""
    extra = max(0, rows - table.shape[0])
    return np.concatenate([table[:rows], np.repeat(table[-1:], extra, axis=0)])
