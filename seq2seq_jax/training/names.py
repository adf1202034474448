"""What parameters are called: torch-like names with layer numbers, also of the layers inside a stacked array."""

from __future__ import annotations

import re
from collections.abc import Iterable

from seq2seq_jax.config import EncoderDecoderConfig
from seq2seq_jax.models.param_layouts import DECODER_KERNELS, scan_plan

ADAPTERS = "lora"
# Stored as a table of embeddings, [outputs, inputs]; where it is tied to one, it is no array of its own.
HEAD = "decoder/head/kernel"
LAYER = re.compile(r"layers\.(\d+)\.")


def parameter_names(config: EncoderDecoderConfig, paths: Iterable[str]) -> dict[str, str | tuple[str, ...]]:
    """Path of each parameter of a once-stored tree -> its name, or the names of the rows of its leading layer axis.

    A name is the path with the layer's number: encoder.layers.3.self_attention.query.kernel. Adapters are called as
    their kernel, behind "lora." and before ".a" and ".b".
    """
    return {path: _names(config, path) for path in paths}


def _names(config: EncoderDecoderConfig, path: str) -> str | tuple[str, ...]:
    adapter, path = path.startswith(f"{ADAPTERS}/"), path.removeprefix(f"{ADAPTERS}/")
    outer = f"{ADAPTERS}." if adapter else ""
    side, _, rest = path.partition("/layers/")
    if not rest:
        return outer + path.replace("/", ".")
    slot, _, rest = rest.partition("/")
    name = lambda layer, rest: f"{outer}{side}.layers.{layer}.{rest.replace('/', '.')}"
    if slot != "stacked":
        return name(slot.removeprefix("layers_"), rest)
    block, _, rest = rest.partition("/")
    plan = scan_plan(getattr(config, side))
    first = plan.start + int(block.removeprefix("block_"))
    return tuple(name(first + repeat * plan.period, rest) for repeat in range(plan.repeats))


def rows(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """The names of one array, as many as it has rows that are layers, or one."""
    return (names,) if isinstance(names, str) else names


def without_layer(name: str) -> str:
    """A name that is the same in all layers: encoder.layers.self_attention.query.kernel."""
    return LAYER.sub("layers.", name)


def depth_factor(config: EncoderDecoderConfig, name: str, decay: float) -> float:
    """decay ** (how far below the top of its side): 0 for what reads the last layer, 1 for the last layer itself, and
    layers + 1 for embeddings and tables of positions, as in BEiT (Bao et al. 2022, get_num_layer_for_vit)."""
    side, _, rest = name.removeprefix(f"{ADAPTERS}.").partition(".")
    if side not in ("encoder", "decoder"):
        return 1.0
    layers = getattr(config, side).stored_layers
    if number := LAYER.match(rest):
        return decay ** (layers - int(number[1]))
    return decay ** (layers + 1) if rest.startswith(("embeddings.", "relative_")) else 1.0


def kernel_inputs(path: str, ndim: int) -> int | None:
    """How many axes of one layer's array at `path` are inputs; the others are outputs. None: it is no kernel, or the
    head's, whose axes lie the other way round.

    Args:
      ndim: of the array, the leading layer axis not counted.
    """
    adapter = path.startswith(f"{ADAPTERS}/")
    if adapter:
        return ndim - 1 if path.endswith("/a") else 1
    if not path.endswith("/kernel") or path == HEAD:
        return None
    part, module, _ = ("", *path.split("/"))[-3:]
    return DECODER_KERNELS.get((part, module), 1)
