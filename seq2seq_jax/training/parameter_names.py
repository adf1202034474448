"""Names of parameters, by which groups and adapters choose them: one for each layer, also within a stacked array."""

from __future__ import annotations

import re
from collections.abc import Iterable

from seq2seq_jax.config import EncoderDecoderConfig
from seq2seq_jax.models.param_layouts import DECODER_KERNELS
from seq2seq_jax.weights.loading import layer_paths

ADAPTERS = "lora"
# Stored as a table of embeddings, [outputs, inputs]; where it is tied to one, it is no array of its own.
HEAD = "decoder/head/kernel"
LAYER = re.compile(r"layers\.(\d+)\.")


def parameter_names(config: EncoderDecoderConfig, paths: Iterable[str]) -> dict[str, str | tuple[str, ...]]:
    """Path of each array of a once-stored tree -> its name, or the names of the layers along its leading axis.

    A name is the loader's path of one layer's parameter, with dots: encoder.layers.3.self_attention.query.kernel. An
    adapter is named after its kernel: lora.<kernel>.a and lora.<kernel>.b.
    """
    return {path: _names(config, path) for path in paths}


def _names(config: EncoderDecoderConfig, path: str) -> str | tuple[str, ...]:
    prefix = f"{ADAPTERS}." if path.startswith(f"{ADAPTERS}/") else ""
    paths, stacked = layer_paths(config, path.removeprefix(f"{ADAPTERS}/"))
    names = tuple(prefix + each.replace("/layers_", "/").replace("/", ".") for each in paths)
    return names if stacked else names[0]


def layer_names(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """The names of one array, as a tuple where it has one name too."""
    return (names,) if isinstance(names, str) else names


def without_layer(name: str) -> str:
    """A name that is the same in all layers: encoder.layers.self_attention.query.kernel."""
    return LAYER.sub("layers.", name)


def depth_factor(config: EncoderDecoderConfig, name: str, decay: float) -> float:
    """decay ** (layers above this parameter on its side): exponent 0 for what reads the last layer, 1 for the last
    layer itself, layers + 1 for embeddings and tables of positions (BEiT, Bao et al. 2022, get_num_layer_for_vit)."""
    side, _, rest = name.removeprefix(f"{ADAPTERS}.").partition(".")
    if side not in ("encoder", "decoder"):
        return 1.0
    layers = getattr(config, side).stored_layers
    if number := LAYER.match(rest):
        return decay ** (layers - int(number[1]))
    return decay ** (layers + 1) if rest.startswith(("embeddings.", "relative_")) else 1.0


def kernel_inputs(path: str, ndim: int) -> int | None:
    """The number of leading axes of one layer's kernel that are inputs; the others are outputs. None: the array at
    `path` is no kernel, or the head's, whose axes lie the other way round.

    Args:
      ndim: of the array, the leading layer axis not counted.
    """
    if path.startswith(f"{ADAPTERS}/"):
        return ndim - 1 if path.endswith("/a") else 1
    if not path.endswith("/kernel") or path == HEAD:
        return None
    part, module, _ = ("", *path.split("/"))[-3:]
    return DECODER_KERNELS.get((part, module), 1)
