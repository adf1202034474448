"""Settings of the optimizer, its groups of parameters, and low-rank adapters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seq2seq_jax.config.validation import check, check_choice, check_counts, from_mapping, setting

SCHEDULES = ("constant", "cosine", "inverse_sqrt", "linear", "noam")
OPTIMIZERS = ("adafactor", "adamw", "lion", "muon")
# Settings of updates, which a frozen group cannot have.
UPDATE_SETTINGS = ("learning_rate", "learning_rate_scale", "weight_decay", "schedule", "warmup_steps", "optimizer")


@dataclass(frozen=True)
class GroupConfig:
    """One group of `optimizer.groups`; fields that it leaves unset are those of the optimizer."""

    match: str = setting(help="regular expression (re.search) of parameters' names: r'encoder\\.layers\\.[0-3]\\.'")
    name: str | None = setting(None, help="what its metrics are called; unset: its expression")
    learning_rate: float | None = setting(None, help="instead of the optimizer's")
    learning_rate_scale: float | None = setting(None, help="factor on the optimizer's")
    weight_decay: float | None = setting(None, help="instead of the optimizer's")
    schedule: str | None = setting(None, help="instead of the optimizer's")
    warmup_steps: int | None = setting(None, help="instead of the optimizer's")
    optimizer: str | None = setting(None, help="the algorithm, instead of the optimizer's name")
    freeze: bool = setting(False, help="these parameters stay as they are")
    unfreeze_step: int = setting(0, help="steps for which they stay as they are, before they are trained")

    def __post_init__(self):
        where = f"optimizer.groups[{self.match!r}]"
        check_expression(self.match, where)
        check_counts(self, where, ("warmup_steps", "unfreeze_step"), low=0)
        for value, known, name in (
            (self.schedule, SCHEDULES, "schedule"),
            (self.optimizer, OPTIMIZERS, "optimizer"),
        ):
            if value is not None:
                check_choice(value, known, f"{where}.{name}")
        for name in ("learning_rate", "learning_rate_scale"):
            value = getattr(self, name)
            check(value is None or value > 0, f"{where}.{name} is {value!r}; give a number above 0, or freeze=True")
        check_weight_decay(self.weight_decay, where)
        check(
            self.learning_rate is None or self.learning_rate_scale is None,
            f"{where} has both learning_rate and learning_rate_scale; give one of them",
        )
        check(
            not (self.freeze and self.unfreeze_step),
            f"{where} has both freeze and unfreeze_step; give one of them",
        )
        given = [name for name in UPDATE_SETTINGS if getattr(self, name) is not None]
        check(
            not (self.freeze and given),
            f"{where} has both freeze and {', '.join(given)}; what is frozen is not updated, so leave out one or the"
            " other",
        )

    @property
    def label(self) -> str:
        """What its metrics are called."""
        return self.name or self.match


@dataclass(frozen=True)
class OptimizerConfig:
    """Gradient clipping, an algorithm and a schedule, for all parameters alike or by groups."""

    name: str = setting(
        "adamw",
        help="""the algorithm: adamw (torch.optim.AdamW), adafactor, lion, or muon (kernels of layers; adamw for the
        rest)""",
    )
    learning_rate: float = setting(5e-5, help="its peak, reached at the end of the warm-up; noam: its factor")
    schedule: str = setting(
        "linear",
        help="""after the warm-up: linear, cosine (both down to final_fraction), inverse_sqrt or constant; or noam,
        which is learning_rate * min(step^-0.5, step * warmup_steps^-1.5)""",
    )
    warmup_steps: int = setting(0, help="steps of linear growth from 0")
    final_fraction: float = setting(0.0, help="what linear and cosine leave of the peak at the last step")
    b1: float = setting(0.9, help="adamw, lion: decay of the mean of gradients")
    b2: float = setting(0.999, help="adamw: decay of the mean of squared gradients; lion: of the mean (usual: 0.99)")
    eps: float = setting(1e-8, help="adamw: added to the root of that mean")
    muon_momentum: float = setting(0.95, help="muon: decay of the mean of gradients")
    weight_decay: float = setting(0.01, help="decoupled, on every trained parameter")
    clip_norm: float | None = setting(1.0, help="the global norm of the gradient is cut to this; 0 or unset: it is not")
    freeze: tuple[str, ...] = setting(
        (),
        help="""regular expressions (re.search); parameters whose name holds a match ('encoder.embeddings') stay as
        they are""",
    )
    groups: tuple[GroupConfig | Mapping[str, Any], ...] = setting(
        (),
        help="""groups of parameters by their names (encoder.layers.3.self_attention.query.kernel); a parameter belongs
        to the first that matches: mappings of match (a regular expression, re.search), name, learning_rate or
        learning_rate_scale, weight_decay, schedule, warmup_steps, optimizer, freeze, unfreeze_step""",
    )
    layer_decay: float | None = setting(
        None,
        help="""factor on the learning rate for each layer further from the top of its side, embeddings lowest
        (BEiT: 0.65 to 0.9); unset: 1""",
    )
    skip_above: float | None = setting(
        None,
        help="a step whose gradient norm is above so many times the mean of the last ones is skipped; unset: none is",
    )
    max_skipped: int = setting(
        0,
        help="so many steps in a row may be skipped, for a norm or for what is not finite, before the run stops",
        may_change=True,
    )

    def __post_init__(self):
        groups = tuple(
            from_mapping(GroupConfig, group, f"optimizer.groups[{i}]") if isinstance(group, Mapping) else group
            for i, group in enumerate(self.groups)
        )
        object.__setattr__(self, "groups", groups)
        check_choice(self.name, OPTIMIZERS, "optimizer.name")
        check_choice(self.schedule, SCHEDULES, "optimizer.schedule")
        check_counts(self, "optimizer", ("warmup_steps", "max_skipped"), low=0)
        check(self.learning_rate > 0, f"optimizer.learning_rate is {self.learning_rate!r}; give a number above 0")
        check(0 <= self.final_fraction <= 1, f"optimizer.final_fraction is {self.final_fraction!r}; give 0 to 1")
        for name in ("b1", "b2", "muon_momentum"):
            value = getattr(self, name)
            check(0 <= value < 1, f"optimizer.{name} is {value!r}; give a number from 0 to below 1")
        clip = self.clip_norm
        check(
            clip is None or clip >= 0, f"optimizer.clip_norm is {clip!r}; give a number above 0, or 0 for no clipping"
        )
        check(self.eps > 0, f"optimizer.eps is {self.eps!r}; give a number above 0")
        check_weight_decay(self.weight_decay, "optimizer")
        for pattern in self.freeze:
            check_expression(pattern, "optimizer.freeze")
        decay, above = self.layer_decay, self.skip_above
        check(decay is None or 0 < decay <= 1, f"optimizer.layer_decay is {decay!r}; give a number above 0, up to 1")
        check(above is None or above > 1, f"optimizer.skip_above is {above!r}; give a number above 1")
        check(
            above is None or self.max_skipped > 0,
            "optimizer.skip_above is given and max_skipped is 0, so that the first skipped step would stop the run;"
            " give max_skipped above 0",
        )
        for group in (self, *groups):
            self._check_warmup(group)
        labels = [group.label for group in groups]
        for label in labels:
            check(
                labels.count(label) == 1,
                f"optimizer.groups has {labels.count(label)} groups whose metrics would be called {label!r} (a group's"
                " name, or else its match); give each a name of its own",
            )

    def _check_warmup(self, group: OptimizerConfig | GroupConfig) -> None:
        schedule = self.schedule if group.schedule is None else group.schedule
        warmup = self.warmup_steps if group.warmup_steps is None else group.warmup_steps
        where = "optimizer" if group is self else f"optimizer.groups[{group.match!r}]"
        check(
            schedule not in ("inverse_sqrt", "noam") or warmup > 0,
            f"{where}: the schedule is {schedule} and warmup_steps 0; its rate is a function of warmup_steps, so give"
            " warmup_steps above 0",
        )


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2022): a kernel becomes kernel + alpha / rank * a b; only a and b are trained."""

    rank: int = setting(0, help="columns of a and rows of b; 0: no adapters")
    alpha: float = setting(16.0, help="alpha / rank is the factor on their product")
    targets: tuple[str, ...] = setting(
        (r"attention\.query", r"attention\.value"),
        help="""regular expressions (re.search) of kernels' names without layer numbers
        (decoder.layers.cross_attention.query.kernel; decoder.head.kernel, if it is not tied to the embeddings)""",
    )

    def __post_init__(self):
        check_counts(self, "lora", ("rank",), low=0)
        check(self.alpha > 0, f"lora.alpha is {self.alpha!r}; give a number above 0")
        check(self.rank == 0 or len(self.targets) > 0, "lora.targets is empty; name kernels ('attention.query')")
        for pattern in self.targets:
            check_expression(pattern, "lora.targets")


def check_weight_decay(value: float | None, where: str) -> None:
    """A ValueError, unless `value` is None or a number from 0 up."""
    check(value is None or value >= 0, f"{where}.weight_decay is {value!r}; give a number from 0 up")


def check_expression(pattern: str, where: str) -> None:
    """A ValueError, unless `pattern` is a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{where}: {pattern!r} is no regular expression ({error}); escape special characters with \\"
        ) from None
