"""Which rule each parameter is trained by: one per layer, also of the layers inside a stacked array."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from seq2seq_jax.config import EncoderDecoderConfig, GroupConfig, OptimizerConfig, nearest
from seq2seq_jax.training.names import ADAPTERS, depth_factor, kernel_inputs, parameter_names, rows
from seq2seq_jax.training.schedules import schedule

NEVER = np.iinfo(np.int32).max
ALL = GroupConfig(match=".*", name="all")
# Adapters go with their kernel.
MUON_KERNEL = re.compile(rf"({ADAPTERS}/)?(enc_to_dec_proj/|\w+/layers/)")


@dataclass(frozen=True)
class Group:
    """A rule with all that it sets. begin: the first step that trains (NEVER: it is frozen)."""

    label: str
    schedule: optax.Schedule
    weight_decay: float
    algorithm: str
    begin: int


@dataclass(frozen=True)
class ArrayRule:
    """How one array is trained.

    Attributes:
      groups: number of the group of each row of the leading layer axis; one number where there is no such axis.
      factors: on the learning rate, likewise.
      stacked: whether there is that axis.
      algorithm: of `config.optimizer.OPTIMIZERS`.
      inputs: how many axes of a layer's array are inputs, if it is a kernel.
    """

    groups: tuple[int, ...]
    factors: tuple[float, ...]
    stacked: bool
    algorithm: str
    inputs: int | None

    def each(self, values: Iterable[Any]) -> Any:
        """An array [rows] of the values of its rows' groups; their one value where there is no layer axis."""
        values = list(values)
        return jnp.stack([jnp.asarray(values[g]) for g in self.groups]) if self.stacked else values[self.groups[0]]

    def spread(self, x: jax.Array, value: jax.Array) -> jax.Array:
        """`value` of `each`, so that it broadcasts over the array x."""
        return jnp.reshape(value, (-1, *(1,) * (x.ndim - 1))) if self.stacked else value


class Groups:
    """The groups, and the rule of each array by its path in the tree of parameters."""

    def __init__(self, groups: tuple[Group, ...], rules: Mapping[str, ArrayRule]):
        self.groups, self.rules = groups, rules
        trained = [i for i, group in enumerate(groups) if group.begin < NEVER]
        # What is measured apart: groups that are trained, where there are several.
        self._shown, self._last = (trained if len(trained) > 1 else []), trained[-1]

    def is_frozen(self, path: str) -> bool:
        """Whether no part of an array is ever trained."""
        return all(self.groups[g].begin == NEVER for g in self.rules[path].groups)

    @property
    def frozen(self) -> dict[str, Any] | None:
        """A tree of booleans like the parameters, true where `is_frozen`; None where nothing is."""
        flat = {path: self.is_frozen(path) for path in self.rules}
        return unflatten_dict(flat, sep="/") if any(flat.values()) else None

    @property
    def trained_tree(self) -> dict[str, Any]:
        """A tree of booleans like the parameters, true where not `is_frozen`."""
        return unflatten_dict({path: not self.is_frozen(path) for path in self.rules}, sep="/")

    def trained(self, path: str, count: jax.Array) -> jax.Array | None:
        """Which rows of an array are trained after `count` steps, bool [rows] or []; None: always all."""
        rule = self.rules[path]
        begins = [group.begin for group in self.groups]
        return rule.each(count >= begin for begin in begins) if any(begins[g] for g in rule.groups) else None

    def masked(self, grads: Mapping[str, Any], count: jax.Array) -> dict[str, Any]:
        """The gradient, zero where nothing is trained after `count` steps."""

        def mask(path: str, x: jax.Array) -> jax.Array:
            trained = self.trained(path, count)
            return x if trained is None else jnp.where(self.rules[path].spread(x, trained), x, 0.0)

        return map_paths(mask, grads)

    def rates(self, count: jax.Array) -> list[jax.Array]:
        """The learning rate of each group after `count` steps."""
        return [jnp.asarray(group.schedule(count), jnp.float32) for group in self.groups]

    def norms(self, name: str, tree: Mapping[str, Any] | None) -> dict[str, jax.Array]:
        """{name/label: norm} of the parts of a tree like the parameters, if there are several trained groups."""
        if not self._shown or tree is None:
            return {}
        squares = [jnp.zeros((), jnp.float32)] * len(self.groups)
        for path, x in flatten_dict(tree, sep="/").items():
            rule = self.rules[path]
            axes = tuple(range(int(rule.stacked), x.ndim))
            sums = jnp.atleast_1d(jnp.sum(jnp.square(x.astype(jnp.float32)), axes))
            for g in set(rule.groups):
                squares[g] += jnp.sum(sums[np.flatnonzero(np.equal(rule.groups, g))])
        return {f"{name}/{self.groups[g].label}": jnp.sqrt(squares[g]) for g in self._shown}

    def metrics(self, grads: Any, updates: Any, count: jax.Array) -> dict[str, jax.Array]:
        """learning_rate of the last trained group, that of the rest; and, of each if there are several,
        learning_rate/<label>, grad_norm/<label> and update_norm/<label>.

        updates: None for metrics without their norms.
        """
        rates = self.rates(count)
        shown = {f"learning_rate/{self.groups[g].label}": rates[g] for g in self._shown}
        norms = {**self.norms("grad_norm", grads), **self.norms("update_norm", updates)}
        return {"learning_rate": rates[self._last], **shown, **norms}


def map_paths(function: Callable, *trees: Mapping[str, Any]) -> dict[str, Any]:
    """function(path, leaf, ...) of the leaves of nested mappings, which need not be arrays."""
    first, *rest = (flatten_dict(tree, sep="/") for tree in trees)
    return unflatten_dict({path: function(path, x, *(t[path] for t in rest)) for path, x in first.items()}, sep="/")


def assign_groups(
    config: OptimizerConfig, pair: EncoderDecoderConfig, params: Mapping[str, Any], num_steps: int
) -> Groups:
    """The groups of config.groups, and which rows of which arrays each of them has.

    config.freeze stands before them; with adapters among the parameters, all else is frozen first. Without any groups
    there is one of all parameters.

    Args:
      params: once-stored; only its paths and its arrays' numbers of axes are read.

    Raises:
      ValueError: for a parameter that no group matches, a group that gets no parameter, or layers of one array that
        have different algorithms.
    """
    flat = flatten_dict(params, sep="/")
    names = parameter_names(pair, flat)
    # In `freeze`, a path (encoder/embeddings) does as well as a name.
    fixed = [GroupConfig(pattern.replace("/", r"\."), freeze=True) for pattern in config.freeze]
    every = [name for entry in names.values() for name in rows(entry)]
    for rule in fixed:
        if not any(re.search(rule.match, name) for name in every):
            raise ValueError(f"optimizer.freeze {rule.match!r} matches no parameter: {nearest(rule.match, every)}")
    if ADAPTERS in params:
        fixed.append(GroupConfig(rf"(?!{ADAPTERS}\.)", freeze=True))
    rules = (*fixed, *(config.groups or (ALL,)))
    chosen = {path: tuple(_first(rules, name) for name in rows(entry)) for path, entry in names.items()}
    taken = {number for numbers in chosen.values() for number in numbers}
    for number in range(len(fixed), len(rules)):
        if number not in taken and config.groups:
            raise ValueError(
                f"optimizer.groups[{number - len(fixed)}] ({rules[number].match!r}) gets no parameter: all that it"
                " matches, if any, earlier rules take (freeze and lora among them); mend its expression or leave it out"
                f" ({nearest(rules[number].match, every)})"
            )
    groups = tuple(_resolved(rule, config, num_steps) for rule in rules)
    arrays = {path: _array_rule(config, pair, groups, path, names[path], chosen[path], x) for path, x in flat.items()}
    if all(groups[g].begin == NEVER for numbers in chosen.values() for g in numbers):
        raise ValueError("optimizer.freeze and optimizer.groups leave nothing to train; freeze less")
    return Groups(groups, arrays)


def check_unfreezing(config: OptimizerConfig, num_steps: int) -> None:
    """A ValueError for a group that a run of `num_steps` ends before. Apart from `assign_groups`, which also serves
    those who do not know a run's steps (dry runs of epochs)."""
    for rule in config.groups:
        if rule.unfreeze_step >= num_steps:
            raise ValueError(
                f"optimizer.groups[{rule.match!r}].unfreeze_step is {rule.unfreeze_step}, and the run has {num_steps}"
                " steps, so that these parameters would never be trained; lower it, or give freeze=True instead"
            )


def _first(rules: tuple[GroupConfig, ...], name: str) -> int:
    for number, rule in enumerate(rules):
        if re.search(rule.match, name):
            return number
    raise ValueError(
        f"the parameter {name} is matched by none of optimizer.groups; add a last one, {{'match': '.*'}}, for the rest"
    )


def _resolved(rule: GroupConfig, config: OptimizerConfig, num_steps: int) -> Group:
    own = lambda name: getattr(config if getattr(rule, name) is None else rule, name)
    peak = own("learning_rate") * (rule.learning_rate_scale or 1.0)
    return Group(
        label=rule.label,
        schedule=schedule(own("schedule"), peak, own("warmup_steps"), num_steps, config.final_fraction),
        weight_decay=own("weight_decay"),
        algorithm=rule.optimizer or config.name,
        begin=NEVER if rule.freeze else rule.unfreeze_step,
    )


def _array_rule(
    config: OptimizerConfig,
    pair: EncoderDecoderConfig,
    groups: tuple[Group, ...],
    path: str,
    names: str | tuple[str, ...],
    chosen: tuple[int, ...],
    x: Any,
) -> ArrayRule:
    stacked = not isinstance(names, str)
    algorithms = sorted({groups[g].algorithm for g in chosen if groups[g].begin < NEVER})
    if len(algorithms) > 1:
        raise ValueError(
            f"the layers of {path} are stored as one array, and optimizer.groups give them the optimizers"
            f" {' and '.join(algorithms)}; give all of them one"
        )
    algorithm, inputs = (algorithms or [config.name])[0], kernel_inputs(path, x.ndim - stacked)
    if algorithm == "muon" and (inputs is None or not MUON_KERNEL.match(path)):
        algorithm = "adamw"
    decay = 1.0 if config.layer_decay is None else config.layer_decay
    factors = tuple(depth_factor(pair, name, decay) for name in rows(names))
    return ArrayRule(chosen, factors, stacked, algorithm, inputs)
