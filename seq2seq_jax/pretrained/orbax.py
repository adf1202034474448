"""Parameters as Orbax / TensorStore directories, restored straight onto a mesh.

Orbax is imported where it is used: it takes longer to import than the rest of the package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from seq2seq_jax.config import EncoderDecoderConfig
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.models.layers import Dtype
from seq2seq_jax.weights.loading import VOCAB_LEAVES, abstract_leaf, leaves

PARAMS = "params"


def save_params(directory: Path, config: EncoderDecoderConfig, params: Mapping[str, Any]) -> None:
    """Writes `directory`/params, the vocabulary without padding; replaces what was there."""
    import orbax.checkpoint as ocp

    flat = flatten_dict(params, sep="/")
    for path, array in flat.items():
        role, _, leaf = path.partition("/")
        if leaf in VOCAB_LEAVES:
            flat[path] = array[: getattr(config, role).vocab_size]
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        target = (directory / PARAMS).absolute()
        checkpointer.save(target, args=ocp.args.PyTreeSave(unflatten_dict(flat, sep="/")), force=True)


def restore_params(
    directory: Path, model: EncoderDecoder, *, mesh: Mesh | None = None, dtype: Dtype, only: str | None = None
) -> dict[str, Any]:
    """The parameter tree of `directory`/params in `dtype`; each device of `mesh` reads its part only.

    Args:
      only: a regular expression; parameters whose path ("decoder/layers/...") it does not match are left out, unread.

    Raises:
      ValueError: if the stored tree is not the model's, naming a parameter.
    """
    import orbax.checkpoint as ocp

    wanted = {p: leaf for p, leaf in leaves(model).items() if only is None or re.match(only, p)}
    if not wanted:
        raise ValueError(f"no parameter's path matches only={only!r}; paths begin with 'encoder/' or 'decoder/'")
    shapes, arguments = {}, {}
    for path, leaf in wanted.items():
        shapes[path] = abstract_leaf(leaf, mesh, dtype)
        # Not strict: the vocabulary may be padded for this mesh.
        arguments[path] = ocp.ArrayRestoreArgs(
            dtype=dtype, sharding=shapes[path].sharding, global_shape=leaf.shape, strict="vocab" not in leaf.axes
        )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        target = (directory / PARAMS).absolute()
        stored = flatten_dict(checkpointer.metadata(target).item_metadata.tree, sep="/")
        for path, leaf in wanted.items():
            if path not in stored:
                raise ValueError(
                    f"{target} lacks the parameter {path!r}; its config.json is not the one it was saved with"
                )
            same = [a == b for a, b, axis in zip(stored[path].shape, leaf.shape, leaf.axes) if axis != "vocab"]
            if not all(same):
                raise ValueError(
                    f"{target}: {path} has shape {list(stored[path].shape)}, and config.json asks for"
                    f" {list(leaf.shape)}; the two do not belong together"
                )
        args = ocp.args.PyTreeRestore(
            item=unflatten_dict(shapes, sep="/"),
            restore_args=unflatten_dict(arguments, sep="/"),
            partial_restore=True,
        )
        return checkpointer.restore(target, args=args)
