"""Checks of a forward pass's inputs: what cannot be right is an error of one line that names the argument.

Shapes and kinds are checked always, values where they are known (not while tracing).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seq2seq_jax.config import TransformerConfig
from seq2seq_jax.models.targets import check_ids, shape_of


def check_inputs(
    config: TransformerConfig,
    role: str,
    *,
    ids: Any = None,
    embeds: Any = None,
    attention_mask: Any = None,
    token_type_ids: Any = None,
    position_ids: Any = None,
    pack_ids: Any = None,
) -> tuple[int, int]:
    """Checks what the encoder or the decoder (`role`) is given; see `EncoderDecoder.__call__`.

    Returns:
      Its rows and their length.

    Raises:
      ValueError: naming the argument, what it holds and what to give.
    """
    prefix = "decoder_" if role == "decoder" else ""
    given, name = (ids, f"{prefix}input_ids") if embeds is None else (embeds, f"{prefix}inputs_embeds")
    if ids is not None and embeds is not None:
        raise ValueError(f"{prefix}input_ids and {prefix}inputs_embeds are both given; give one of them")
    if given is None:
        more = ", or encoder_outputs" if role == "encoder" else ""
        raise ValueError(f"the {role} is given nothing to read; give {prefix}input_ids or {prefix}inputs_embeds{more}")
    shape = shape_of(name, given)
    if 0 in shape:
        raise ValueError(f"{name} has shape {list(shape)}, which holds nothing; give at least one row of one token")
    if embeds is None:
        if len(shape) != 2:
            raise ValueError(f"{name} has shape {list(shape)}; give [batch, length]")
        check_ids(name, ids, config.vocab_size)
    elif len(shape) != 3 or shape[2] != config.embedding_size:
        raise ValueError(f"{name} has shape {list(shape)}; give [batch, length, {config.embedding_size}]")
    rows = f"{name} {list(shape)}"
    for what, array in ((f"{prefix}attention_mask", attention_mask), (f"{role}_pack_ids", pack_ids)):
        _check_shape(what, array, (shape[:2],), rows)
    check_integers(f"{role}_pack_ids", pack_ids)
    _check_shape(f"{prefix}token_type_ids", token_type_ids, (shape[:2],), rows)
    check_token_types(config, token_type_ids, f"{prefix}token_type_ids")
    _check_shape(f"{prefix}position_ids", position_ids, (shape[:2], (1, shape[1])), rows)
    check_positions(config, role, position_ids, f"{prefix}position_ids")
    return shape[:2]


def check_encoder_inputs(
    config: TransformerConfig,
    outputs: Any,
    *,
    ids: Any = None,
    attention_mask: Any = None,
    pack_ids: Any = None,
    **more: Any,
) -> tuple[tuple[int, int], jax.Array | np.ndarray | None]:
    """`check_inputs` of the encoder where its `outputs` may be given in place of what it reads (None: they are not).

    Returns:
      Rows and their length; the states that `outputs` hold, or None.
    """
    if outputs is None:
        arguments = {"ids": ids, "attention_mask": attention_mask, "pack_ids": pack_ids, **more}
        return check_inputs(config, "encoder", **arguments), None
    for name in ("embeds", "token_type_ids", "position_ids"):
        if more.get(name) is not None:
            name = "inputs_embeds" if name == "embeds" else name
            raise ValueError(f"encoder_outputs and {name} are both given, and no encoder runs; leave one of them out")
    states = last_hidden_state(outputs, config)
    shape, rows = states.shape[:2], f"encoder_outputs {list(states.shape)}"
    for name, array in (("input_ids", ids), ("attention_mask", attention_mask), ("encoder_pack_ids", pack_ids)):
        _check_shape(name, array, (shape,), rows)
    check_ids("input_ids", ids, config.vocab_size)
    check_integers("encoder_pack_ids", pack_ids)
    return shape, states


def check_token_types(config: TransformerConfig, ids: Any, name: str = "token_type_ids") -> None:
    """Token types that the transformer does not have are an error."""
    if ids is None:
        return
    n = config.type_vocab_size
    if not n:
        raise ValueError(f"{name} are given, but this {config.family} has no token types; leave them out")
    remedy = f"give 0 to {n - 1}, or leave them out" if n > 1 else "give 0, or leave them out"
    check_ids(name, ids, n, table=f"the table of {n} token types of this {config.family}", remedy=remedy)


def check_positions(config: TransformerConfig, role: str, ids: Any, name: str) -> None:
    """Positions that the transformer does not have are an error; RoBERTa's count from its pad token's row on."""
    if ids is None:
        return
    if config.positions == "none":
        if not config.rotaries:
            raise ValueError(f"{name} are given, but this {config.family} reads none; leave them out")
        check_ids(name, ids, np.iinfo(np.int32).max, table="the positions, which count from 0", remedy="give 0 or more")
        return
    rows = config.max_positions + (0 if config.position_pad_id is None else config.position_offset)
    before = (-1,) if config.positions_from_mask else ()  # OPT's of what the mask hides
    table = f"the table of {rows} positions of this {config.family}"
    remedy = f"give 0 to {rows - 1}, or load with {role}_max_position_embeddings"
    check_ids(name, ids, rows, before, table=table, remedy=remedy)


def check_integers(name: str, ids: Any) -> None:
    """Ids that are no whole numbers are an error."""
    check_ids(name, ids, np.iinfo(np.int32).max, table="the whole numbers from 0", remedy="give those")


def check_batches(**inputs: Any) -> None:
    """Inputs of unequal batches are an error that names the first two of these; None counts for nothing."""
    batches = {name: shape_of(name, value)[0] for name, value in inputs.items() if value is not None}
    (first, size), *others = batches.items()
    for name, other in others:
        if other != size:
            raise ValueError(f"{name} has a batch of {other} and {first} one of {size}; give both the same")


def check_states(name: str, states: Any, hidden: int) -> None:
    """States that are not [..., hidden] are an error."""
    if np.ndim(states) == 0 or np.shape(states)[-1] != hidden:
        raise ValueError(f"{name} has shape {list(np.shape(states))}; give [..., {hidden}]")


def _check_shape(name: str, array: Any, shapes: tuple[tuple[int, ...], ...], rows: str) -> None:
    if array is not None and (shape := shape_of(name, array)) not in shapes:
        raise ValueError(f"{name} has shape {list(shape)} and {rows}; give it {list(shapes[0])}")


def last_hidden_state(encoder_outputs: Any, config: TransformerConfig) -> jax.Array | np.ndarray:
    """The encoder's states [batch, source, hidden] of what a caller has of them.

    Args:
      encoder_outputs: an array of that shape; an output that names them `encoder_last_hidden_state` (ours) or
        `last_hidden_state` (torch's); or a tuple or list that begins with them.

    Raises:
      ValueError: for anything else.
    """
    states = encoder_outputs
    for name in ("encoder_last_hidden_state", "last_hidden_state"):
        named = states.get(name) if isinstance(states, Mapping) else getattr(states, name, None)
        states = states if named is None else named
    states = states[0] if isinstance(states, (tuple, list)) and len(states) else states
    if not isinstance(states, jax.Array):
        states = np.asarray(states)
    if states.ndim != 3 or states.shape[2] != config.hidden_size or not jnp.issubdtype(states.dtype, jnp.floating):
        raise ValueError(
            f"encoder_outputs holds {states.dtype} of shape {list(states.shape)}; give the encoder's last hidden"
            f" states, [batch, source, {config.hidden_size}], or an output that begins with them"
        )
    return states
