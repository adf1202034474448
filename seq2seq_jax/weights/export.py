"""Parameters to torch's tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from seq2seq_jax.families.rules import Rule
from seq2seq_jax.models import ties
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.parallel.multihost import to_host
from seq2seq_jax.weights.params import VOCAB_PARAMS, untied_specs
from seq2seq_jax.weights.tensor_names import export_refs


def torch_tensors(model: EncoderDecoder, params: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Names of all tensors of the pair's file, in the order of the rules, each with a function that makes it."""
    full = flatten_dict(ties.fill(params, model.aliases), sep="/")
    stored_at: dict[str, tuple[str, int | None]] = {}  # parameter -> path of its array, and its row if stacked
    for path, spec in untied_specs(model).items():
        for i, parameter in enumerate(spec.paths):
            stored_at[parameter] = (path, i if spec.stacked else None)
    refs = export_refs(model.config)
    by_name: dict[str, dict[int, str]] = {}
    for parameter, ref in refs.items():
        by_name.setdefault(ref.names[0], {})[ref.index] = parameter

    def make(parameters: dict[int, str], rule: Rule) -> np.ndarray:
        arrays = []
        for index in range(len(rule.flax)):
            path, row = stored_at[parameters[index]]
            array = to_host(full[path] if row is None else full[path][row])
            role = parameters[index].split("/")[0]
            if role in ("encoder", "decoder") and rule.flax[index] in VOCAB_PARAMS:
                array = array[: getattr(model.config, role).vocab_size]
            arrays.append(array)
        return rule.op.inverse(arrays)

    for name, parameters in by_name.items():
        rule = refs[parameters[0]].rule
        yield name, lambda parameters=parameters, rule=rule: make(parameters, rule)
