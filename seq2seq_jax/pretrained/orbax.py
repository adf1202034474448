"""Parameters as Orbax / TensorStore directories, restored straight onto a mesh.

Orbax is imported where it is used: it takes longer to import than the rest of the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from seq2seq_jax.config import EncoderDecoderConfig
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.models.layers import Dtype
from seq2seq_jax.weights.params import VOCAB_PARAMS, abstract_param, param_specs

PARAMS = "params"


def save_params(directory: Path, config: EncoderDecoderConfig, params: Mapping[str, Any]) -> None:
    """Writes `directory`/params, the vocabulary without padding; replaces what was there."""
    import orbax.checkpoint as ocp

    flat = flatten_dict(params, sep="/")
    for path, array in flat.items():
        role, _, rest = path.partition("/")
        if rest in VOCAB_PARAMS:
            flat[path] = array[: getattr(config, role).vocab_size]
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        target = (directory / PARAMS).absolute()
        checkpointer.save(target, args=ocp.args.PyTreeSave(unflatten_dict(flat, sep="/")), force=True)


def restore_params(directory: Path, model: EncoderDecoder, *, mesh: Mesh | None = None, dtype: Dtype) -> dict[str, Any]:
    """The parameter tree of `directory`/params in `dtype`; each device of `mesh` reads its part only.

    Raises:
      ValueError: if the stored tree is not the model's, naming a parameter.
    """
    import orbax.checkpoint as ocp

    specs = param_specs(model)
    shapes, arguments = {}, {}
    for path, spec in specs.items():
        shapes[path] = abstract_param(spec, mesh, dtype)
        # Not strict: the vocabulary may be padded for this mesh.
        arguments[path] = ocp.ArrayRestoreArgs(
            dtype=dtype, sharding=shapes[path].sharding, global_shape=spec.shape, strict="vocab" not in spec.axes
        )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        target = (directory / PARAMS).absolute()
        stored = flatten_dict(checkpointer.metadata(target).item_metadata.tree, sep="/")
        for path, spec in specs.items():
            if path not in stored:
                raise ValueError(
                    f"{target} lacks the parameter {path!r}; its config.json is not the one it was saved with"
                )
            sizes = zip(stored[path].shape, spec.shape, spec.axes)
            if any(there != here for there, here, axis in sizes if axis != "vocab"):
                raise ValueError(
                    f"{target}: {path} has shape {list(stored[path].shape)}, and config.json asks for"
                    f" {list(spec.shape)}; the two do not belong together"
                )
        if unknown := sorted(stored.keys() - specs.keys()):
            raise ValueError(f"{target} has the parameter {unknown[0]!r}, which the model of its config.json lacks")
        tree, restore_args = unflatten_dict(shapes, sep="/"), unflatten_dict(arguments, sep="/")
        return checkpointer.restore(target, args=ocp.args.PyTreeRestore(item=tree, restore_args=restore_args))
