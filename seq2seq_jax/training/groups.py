"""Groups of parameters that are trained alike: each layer belongs to one, also the layers inside a stacked array."""

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
from seq2seq_jax.training.parameter_names import ADAPTERS, depth_factor, kernel_inputs, layer_names, parameter_names
from seq2seq_jax.training.schedules import schedule

# The first step of a group that is frozen: no run has so many.
NEVER_TRAINED = np.iinfo(np.int32).max
DEFAULT_GROUP = GroupConfig(match=".*", name="all")
# Kernels that muon is for; an adapter goes with its kernel.
MUON_KERNEL = re.compile(rf"({ADAPTERS}/)?(enc_to_dec_proj/|\w+/layers/)")


@dataclass(frozen=True)
class Group:
    """A group with all that it sets. first_step: the first one that trains it; NEVER_TRAINED: it is frozen."""

    label: str
    schedule: optax.Schedule
    weight_decay: float
    algorithm: str
    first_step: int


@dataclass(frozen=True)
class ArraySettings:
    """How one array is trained. An array of stacked layers has a leading layer axis, and a row for each layer.

    Attributes:
      groups: number of each row's group; one number where there is no layer axis.
      factors: on the learning rate, likewise.
      stacked: whether there is a layer axis.
      algorithm: of `config.optimizer.OPTIMIZERS`.
      inputs: the number of axes of a layer's array that are inputs, if it is a kernel.
    """

    groups: tuple[int, ...]
    factors: tuple[float, ...]
    stacked: bool
    algorithm: str
    inputs: int | None

    def per_row(self, values: Iterable[Any]) -> Any:
        """Of one value for each group, those of the rows' groups: [rows], or one value where there is no layer axis."""
        values = list(values)
        return jnp.stack([jnp.asarray(values[g]) for g in self.groups]) if self.stacked else values[self.groups[0]]

    def broadcast(self, x: jax.Array, value: jax.Array) -> jax.Array:
        """`value` of `per_row`, reshaped [rows, 1, ...] so that it broadcasts over the array x."""
        return jnp.reshape(value, (-1, *(1,) * (x.ndim - 1))) if self.stacked else value


class ParameterGroups:
    """The groups of a run, and the settings of each array by its path in the tree of parameters."""

    def __init__(self, groups: tuple[Group, ...], arrays: Mapping[str, ArraySettings]):
        self.groups, self.arrays = groups, arrays
        trained = [i for i, group in enumerate(groups) if group.first_step < NEVER_TRAINED]
        # Groups that have metrics of their own: trained ones, where there are several.
        self._reported, self._last = (trained if len(trained) > 1 else []), trained[-1]

    def is_frozen(self, path: str) -> bool:
        """Whether no row of an array is ever trained."""
        return all(self.groups[g].first_step == NEVER_TRAINED for g in self.arrays[path].groups)

    @property
    def frozen(self) -> dict[str, Any] | None:
        """A tree of booleans like the parameters, true where `is_frozen`; None where nothing is."""
        flat = {path: self.is_frozen(path) for path in self.arrays}
        return unflatten_dict(flat, sep="/") if any(flat.values()) else None

    @property
    def trained_tree(self) -> dict[str, Any]:
        """A tree of booleans like the parameters, true where not `is_frozen`."""
        return unflatten_dict({path: not self.is_frozen(path) for path in self.arrays}, sep="/")

    def trained(self, path: str, count: jax.Array) -> jax.Array | None:
        """Which rows of an array are trained after `count` steps, bool [rows] or []; None: always all."""
        settings = self.arrays[path]
        first_steps = [group.first_step for group in self.groups]
        if not any(first_steps[g] for g in settings.groups):
            return None
        return settings.per_row(count >= first_step for first_step in first_steps)

    def mask_gradients(self, grads: Mapping[str, Any], count: jax.Array) -> dict[str, Any]:
        """The gradient, zero where nothing is trained after `count` steps."""

        def mask(path: str, x: jax.Array) -> jax.Array:
            trained = self.trained(path, count)
            return x if trained is None else jnp.where(self.arrays[path].broadcast(x, trained), x, 0.0)

        return map_paths(mask, grads)

    def learning_rates(self, count: jax.Array) -> list[jax.Array]:
        """The learning rate of each group after `count` steps."""
        return [jnp.asarray(group.schedule(count), jnp.float32) for group in self.groups]

    def norms(self, name: str, tree: Mapping[str, Any] | None) -> dict[str, jax.Array]:
        """{name/label: norm} of each reported group's part of a tree like the parameters."""
        if not self._reported or tree is None:
            return {}
        squares = [jnp.zeros((), jnp.float32)] * len(self.groups)
        for path, x in flatten_dict(tree, sep="/").items():
            settings = self.arrays[path]
            axes = tuple(range(int(settings.stacked), x.ndim))
            sums = jnp.atleast_1d(jnp.sum(jnp.square(x.astype(jnp.float32)), axes))  # [rows]
            for g in set(settings.groups):
                squares[g] += jnp.sum(sums[np.flatnonzero(np.equal(settings.groups, g))])
        return {f"{name}/{self.groups[g].label}": jnp.sqrt(squares[g]) for g in self._reported}

    def metrics(self, grads: Any, updates: Any, count: jax.Array) -> dict[str, jax.Array]:
        """learning_rate of the last trained group, which is usually that of the rest; and, if several groups are
        trained, learning_rate/<label>, grad_norm/<label> and update_norm/<label> of each.

        updates: None for metrics without their norms.
        """
        rates = self.learning_rates(count)
        labelled = {f"learning_rate/{self.groups[g].label}": rates[g] for g in self._reported}
        norms = {**self.norms("grad_norm", grads), **self.norms("update_norm", updates)}
        return {"learning_rate": rates[self._last], **labelled, **norms}


def map_paths(function: Callable, *trees: Mapping[str, Any]) -> dict[str, Any]:
    """function(path, leaf, ...) of the leaves of nested mappings, which need not be arrays."""
    first, *rest = (flatten_dict(tree, sep="/") for tree in trees)
    return unflatten_dict({path: function(path, x, *(t[path] for t in rest)) for path, x in first.items()}, sep="/")


def assign_groups(
    config: OptimizerConfig, pair: EncoderDecoderConfig, params: Mapping[str, Any], num_steps: int
) -> ParameterGroups:
    """The groups of config.groups, and which rows of which arrays belong to each.

    A parameter belongs to the first group that matches it. config.freeze comes before config.groups; with adapters
    among the parameters, all else is frozen too. Without config.groups there is one group of all parameters.

    Args:
      params: once-stored; only its paths and its arrays' numbers of axes are read.

    Raises:
      ValueError: for a parameter that no group matches, a group that gets no parameter, or layers of one array that
        have different algorithms.
    """
    flat = flatten_dict(params, sep="/")
    names = parameter_names(pair, flat)
    # In `freeze`, a path (encoder/embeddings) does as well as a name.
    frozen = [GroupConfig(pattern.replace("/", r"\."), freeze=True) for pattern in config.freeze]
    all_names = [name for entry in names.values() for name in layer_names(entry)]
    for group in frozen:
        if not any(re.search(group.match, name) for name in all_names):
            known = nearest(group.match, all_names)
            raise ValueError(f"optimizer.freeze {group.match!r} matches no parameter: {known}")
    if ADAPTERS in params:
        frozen.append(GroupConfig(rf"^(?!{ADAPTERS}\.)", freeze=True))
    configs = (*frozen, *(config.groups or (DEFAULT_GROUP,)))
    members = {path: tuple(_first_match(configs, name) for name in layer_names(entry)) for path, entry in names.items()}
    used = {number for numbers in members.values() for number in numbers}
    for number in range(len(frozen), len(configs)):
        if number not in used and config.groups:
            match = configs[number].match
            raise ValueError(
                f"optimizer.groups[{number - len(frozen)}] ({match!r}) gets no parameter: all that it matches, if any,"
                " belong to earlier groups (freeze and lora among them); mend its expression or leave it out"
                f" ({nearest(match, all_names)})"
            )
    groups = tuple(_resolved(each, config, num_steps) for each in configs)
    arrays = {path: _settings(config, pair, groups, path, names[path], members[path], x) for path, x in flat.items()}
    if all(groups[g].first_step == NEVER_TRAINED for numbers in members.values() for g in numbers):
        raise ValueError("optimizer.freeze and optimizer.groups leave nothing to train; freeze less")
    return ParameterGroups(groups, arrays)


def check_unfreezing(config: OptimizerConfig, num_steps: int) -> None:
    """A ValueError for a group whose training would begin after the run's end. Apart from `assign_groups`, which is
    also called where a run's number of steps is not known (dry runs of epochs)."""
    for group in config.groups:
        if group.unfreeze_step >= num_steps:
            raise ValueError(
                f"optimizer.groups[{group.match!r}].unfreeze_step is {group.unfreeze_step}, and the run has {num_steps}"
                " steps, so that these parameters would never be trained; lower it, or give freeze=True instead"
            )


def _first_match(configs: tuple[GroupConfig, ...], name: str) -> int:
    for number, group in enumerate(configs):
        if re.search(group.match, name):
            return number
    raise ValueError(
        f"the parameter {name} is matched by none of optimizer.groups; add a last one, {{'match': '.*'}}, for the rest"
    )


def _resolved(group: GroupConfig, config: OptimizerConfig, num_steps: int) -> Group:
    """A group with the optimizer's settings where it has none of its own."""
    setting = lambda name: getattr(config if getattr(group, name) is None else group, name)
    peak = setting("learning_rate") * (group.learning_rate_scale or 1.0)
    return Group(
        label=group.label,
        schedule=schedule(setting("schedule"), peak, setting("warmup_steps"), num_steps, config.final_fraction),
        weight_decay=setting("weight_decay"),
        algorithm=group.optimizer or config.name,
        first_step=NEVER_TRAINED if group.freeze else group.unfreeze_step,
    )


def _settings(
    config: OptimizerConfig,
    pair: EncoderDecoderConfig,
    groups: tuple[Group, ...],
    path: str,
    names: str | tuple[str, ...],
    members: tuple[int, ...],
    x: Any,
) -> ArraySettings:
    stacked = not isinstance(names, str)
    algorithms = sorted({groups[g].algorithm for g in members if groups[g].first_step < NEVER_TRAINED})
    if len(algorithms) > 1:
        raise ValueError(
            f"the layers of {path} are stored as one array, and optimizer.groups give them the optimizers"
            f" {' and '.join(algorithms)}; give all of them one"
        )
    algorithm, inputs = (algorithms or [config.name])[0], kernel_inputs(path, x.ndim - stacked)
    if algorithm == "muon" and (inputs is None or not MUON_KERNEL.match(path)):
        algorithm = "adamw"
    decay = 1.0 if config.layer_decay is None else config.layer_decay
    factors = tuple(depth_factor(pair, name, decay) for name in layer_names(names))
    return ArraySettings(members, factors, stacked, algorithm, inputs)
