"""Ties are data: a tied parameter is stored once, and an alias says where else it appears."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from seq2seq_jax.config import Alias, EncoderDecoderConfig, nearest
from seq2seq_jax.models.param_layouts import scan_plan

EMBEDDING = "embeddings/token/embedding"
OWN_TOKEN = "embeddings/own_token/embedding"


def aliases(config: EncoderDecoderConfig) -> tuple[Alias, ...]:
    """All ties of a pair, sources before what follows from them."""
    tie, out = config.tie_encoder_decoder, []
    if isinstance(tie, tuple):
        out.extend(tie)
    elif tie == "embeddings":
        out.append(Alias(f"encoder/{EMBEDDING}", f"decoder/{EMBEDDING}"))
        if config.encoder.own_token_id is not None and config.decoder.own_token_id is not None:
            out.append(Alias(f"encoder/{OWN_TOKEN}", f"decoder/{OWN_TOKEN}"))
    elif tie is True:
        _check_alike(config)
        bias = config.encoder.relative_bias
        options = {"final_norm": config.encoder.final_norm, "relative_bias": bias is not None and not bias.per_layer}
        parts = ("embeddings", "layers", *(name for name, there in options.items() if there))
        out.extend(Alias(f"encoder/{name}", f"decoder/{name}") for name in parts)
    if config.decoder.tie_head:
        out.append(Alias(f"decoder/{EMBEDDING}", "decoder/head/kernel"))
    return tuple(out)


def _check_alike(config: EncoderDecoderConfig) -> None:
    """tie_encoder_decoder=True needs two transformers of one shape."""
    sizes = ("family", "vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size",
             "max_positions", "embedding_size", "norm_position")  # fmt: skip
    for name in sizes:
        a, b = getattr(config.encoder, name), getattr(config.decoder, name)
        if a != b:
            raise ValueError(
                f"tie_encoder_decoder=True needs equal sides, and {name} is {a!r} in the encoder and {b!r} in the"
                " decoder; make them equal, or tie only 'embeddings'"
            )
    if scan_plan(config.encoder) != scan_plan(config.decoder):
        raise ValueError(
            "tie_encoder_decoder=True needs layers that repeat alike on both sides; give a list of aliases instead"
        )


def _under(flat: Mapping[tuple, Any], prefix: tuple[str, ...]) -> dict[tuple, Any]:
    return {path[len(prefix) :]: value for path, value in flat.items() if path[: len(prefix)] == prefix}


def fill(params: Mapping[str, Any], ties: tuple[Alias, ...]) -> dict[str, Any]:
    """The full parameter tree of a once-stored one.

    Raises:
      ValueError: for an alias whose source is not in the tree.
    """
    flat = flatten_dict(params)
    for alias in ties:
        source, target = tuple(alias.source.split("/")), tuple(alias.target.split("/"))
        found = _under(flat, source)
        if not found:
            raise ValueError(
                f"a tie reads {alias.source!r}, which is not among the parameters:"
                f" {nearest(alias.source, {'/'.join(path) for path in flat})}"
            )
        for rest, value in found.items():
            if alias.layers is not None:  # through a box with logical axes, too
                value = jax.tree.map(lambda rows, layers=slice(*alias.layers): rows[layers], value)
            flat.setdefault(target + rest, value)
    return unflatten_dict(flat)


def strip(params: Mapping[str, Any], ties: tuple[Alias, ...]) -> dict[str, Any]:
    """The once-stored tree of a full one: what `fill` would put back is left out."""
    flat = flatten_dict(params)
    drop: set[tuple] = set()
    for alias in ties:
        source, target = tuple(alias.source.split("/")), tuple(alias.target.split("/"))
        drop |= {target + rest for rest in _under(flat, source)}
    return unflatten_dict({path: value for path, value in flat.items() if path not in drop})


def with_ties(method: Callable) -> Callable:
    """A method of a module that sees the parameters of `self.aliases` filled in (flax.linen.map_variables).

    The module's own tree holds each tied parameter once, whoever calls the method: `apply`, `bind`, a module that holds
    this one. `init` makes such a tree. The gradient of a tied parameter is the sum over its uses.
    """

    @functools.wraps(method)
    def wrapped(self: nn.Module, *args, **kwargs):
        if not self.aliases or self.scope is None:
            return method(self, *args, **kwargs)
        on_params = lambda change: (
            lambda collections: {
                name: change(tree, self.aliases) if name == "params" else tree for name, tree in collections.items()
            }
        )
        making = self.is_mutable_collection("params")
        return nn.map_variables(method, "params", on_params(fill), on_params(strip), init=making, mutable=making)(
            self, *args, **kwargs
        )

    return wrapped
