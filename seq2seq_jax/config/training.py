"""What a fine-tuning run does. The meaning of each field stands in its `help`; `scripts/train.py --config.help` lists
them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from seq2seq_jax.config.validation import check, nearest, setting

MODES = ("jit", "pmap")
SCHEDULES = ("constant", "cosine", "inverse_sqrt", "linear")
# Each metric with the scores that it gives.
METRICS = {
    "bleu": ("bleu",),
    "chrf": ("chrf",),
    "exact_match": ("exact_match",),
    "rouge": ("rouge1", "rouge2", "rougeL", "rougeLsum"),
}


def _check_counts(config: Any, where: str, names: tuple[str, ...], low: int = 1) -> None:
    for name in names:
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        check(
            value is None or (whole and value >= low),
            f"{where}.{name} is {value!r}; give a whole number from {low} up",
        )


def _check_choice(value: str, known: Iterable[str], where: str) -> None:
    check(value in known, f"{where} {value!r} is unknown: {nearest(value, known)}")


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from, and what becomes of their texts."""

    train: str = setting(
        help="""training examples: a .jsonl, .csv or .parquet file (.jsonl and .csv also as .gz or .xz), a shipped set
        (debian-synopsis:train), or a directory or hub id with a split (owner/name:train)"""
    )
    validation: str | None = setting(None, help="the same for validation; unset: `holdout` of the training examples")
    holdout: int = setting(500, help="how many training examples are held out, at most a tenth, if validation is unset")
    subset: str | None = setting(None, help="which configuration of a hub data set, where it has several")
    source_field: str = setting("document", help="column of the texts to read")
    target_field: str = setting("summary", help="column of the texts to write")
    source_prefix: str = setting("", help="put before each source text ('summarize: ')")
    target_prefix: str = setting("", help="put before each target text")
    max_source_length: int = setting(512, help="in tokens, special ones included")
    max_target_length: int = setting(64, help="in tokens, the end token included")
    long_examples: str = setting("cut", help="what becomes of longer texts: 'cut' to the limit, or 'drop' the example")
    min_source_length: int = setting(1, help="examples with fewer source tokens, special ones aside, are dropped")
    min_target_length: int = setting(1, help="examples with fewer target tokens, special ones aside, are dropped")
    train_limit: int | None = setting(None, help="at most so many training examples; unset: all")
    validation_limit: int | None = setting(None, help="at most so many validation examples; unset: all")

    def __post_init__(self):
        _check_counts(self, "data", ("holdout", "max_source_length", "train_limit", "validation_limit"))
        _check_counts(self, "data", ("max_target_length",), low=2)
        _check_counts(self, "data", ("min_source_length", "min_target_length"), low=0)
        _check_choice(self.long_examples, ("cut", "drop"), "data.long_examples")


@dataclass(frozen=True)
class BatchConfig:
    """What one optimizer step takes."""

    size: int = setting(32, help="examples in a step, over all devices")
    tokens: int | None = setting(
        None, help="padded source and target tokens in a step, instead of size: short examples come in larger batches"
    )
    multiple: int = setting(8, help="with tokens: a batch has a multiple of so many examples; the mesh must divide it")
    buckets: int = setting(1, help="shapes of batches: examples of like length share one; each is compiled once")
    accumulation: int = setting(1, help="parts into which a batch is split, one after the other, to save memory")

    def __post_init__(self):
        _check_counts(self, "batch", ("size", "tokens", "multiple", "buckets", "accumulation"))
        rows, name = (self.size, "size") if self.tokens is None else (self.multiple, "multiple")
        check(
            rows % self.accumulation == 0,
            f"batch.{name} is {rows} and batch.accumulation {self.accumulation}; give a batch that it divides",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (torch.optim.AdamW), after clipping, under a schedule with linear warm-up."""

    learning_rate: float = setting(5e-5, help="its peak, reached at the end of the warm-up")
    schedule: str = setting(
        "linear", help="after the warm-up: linear, cosine (both down to final_fraction), inverse_sqrt or constant"
    )
    warmup_steps: int = setting(0, help="steps of linear growth from 0")
    final_fraction: float = setting(0.0, help="what linear and cosine leave of the peak at the last step")
    b1: float = setting(0.9, help="decay of the mean of gradients")
    b2: float = setting(0.999, help="decay of the mean of squared gradients")
    eps: float = setting(1e-8, help="added to the root of that mean")
    weight_decay: float = setting(0.01, help="decoupled, on every trained parameter")
    clip_norm: float | None = setting(1.0, help="the global norm of the gradient is cut to this; unset: it is not")
    freeze: tuple[str, ...] = setting(
        (),
        help="regular expressions; parameters whose path begins with a match ('encoder/embeddings') stay as they are",
    )

    def __post_init__(self):
        _check_choice(self.schedule, SCHEDULES, "optimizer.schedule")
        _check_counts(self, "optimizer", ("warmup_steps",), low=0)
        check(self.learning_rate > 0, f"optimizer.learning_rate is {self.learning_rate!r}; give a number above 0")
        check(0 <= self.final_fraction <= 1, f"optimizer.final_fraction is {self.final_fraction!r}; give 0 to 1")
        check(
            self.schedule != "inverse_sqrt" or self.warmup_steps > 0,
            "optimizer.schedule is inverse_sqrt and warmup_steps 0; its rate is peak * sqrt(warmup_steps / step), so"
            " give warmup_steps above 0",
        )


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one may be -1: what is left. And how a step runs on them."""

    replica: int = setting(
        1, help="copies of the model, in each of which the other axes split it; goes over slices", may_change=True
    )
    data: int = setting(-1, help="parts of the batch; -1: what is left", may_change=True)
    fsdp: int = setting(1, help="parts of batch, weights and optimizer state", may_change=True)
    tensor: int = setting(1, help="parts of heads, MLP and vocabulary", may_change=True)
    mode: str = setting(
        "jit",
        help="jit: one program over the mesh; pmap: a copy of model and optimizer on each device, data only",
        may_change=True,
    )

    def __post_init__(self):
        _check_choice(self.mode, MODES, "mesh.mode")
        split = {name: getattr(self, name) for name in ("replica", "fsdp", "tensor") if getattr(self, name) != 1}
        named = ", ".join(f"mesh.{name} is {size}" for name, size in split.items())
        check(
            self.mode == "jit" or not split,
            f"mesh.mode is pmap, which splits the batch over data alone, and {named}; give 1, or mesh.mode=jit",
        )


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on the validation examples."""

    every: int | None = setting(None, help="steps between evaluations; unset: only at the end", may_change=True)
    at_start: bool = setting(False, help="also before the first step", may_change=True)
    batch_size: int = setting(16, help="examples decoded at once", may_change=True)
    decode_limit: int | None = setting(
        None, help="how many examples are decoded, but at the end, where all are; unset: all", may_change=True
    )
    metrics: tuple[str, ...] = setting(("rouge",), help=f"any of {', '.join(METRICS)}", may_change=True)
    best: str = setting(
        "loss", help="the score whose best checkpoint is kept and exported: loss, rouge2, bleu ...", may_change=True
    )

    def __post_init__(self):
        _check_counts(self, "evaluation", ("every", "batch_size", "decode_limit"))
        for name in self.metrics:
            _check_choice(name, METRICS, "evaluation.metrics")
        scores = ["loss", *(score for name in self.metrics for score in METRICS[name])]
        check(
            self.best in scores,
            f"evaluation.best {self.best!r} is no score of {', '.join(self.metrics)}: {nearest(self.best, scores)}",
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept of the way, so that the same command goes on after a stop."""

    every: int = setting(1000, help="steps between checkpoints; one comes with each evaluation too", may_change=True)
    keep: int = setting(1, help="how many of the last ones stay, beside the best", may_change=True)

    def __post_init__(self):
        _check_counts(self, "checkpoints", ("every", "keep"))


@dataclass(frozen=True)
class TrainConfig:
    """One fine-tuning run."""

    encoder: str = setting(help="the encoder's checkpoint: a directory or hub id; its tokenizer is read beside it")
    decoder: str = setting(help="the decoder's checkpoint, and the target's tokenizer")
    data: DataConfig = setting(help="examples")
    batch: BatchConfig = setting(BatchConfig(), help="batches")
    optimizer: OptimizerConfig = setting(OptimizerConfig(), help="optimizer")
    mesh: MeshConfig = setting(MeshConfig(), help="devices")
    evaluation: EvaluationConfig = setting(EvaluationConfig(), help="evaluation")
    checkpoints: CheckpointConfig = setting(CheckpointConfig(), help="checkpoints")
    warm_start: Mapping[str, Any] = setting(
        {},
        help="arguments of from_encoder_decoder_pretrained: cross_attention_init, tie_encoder_decoder, encoder_<field>",
    )
    generation: Mapping[str, Any] = setting({}, help="generation settings (num_beams, max_length), kept with the model")
    random_weights: bool = setting(False, help="begin from random weights instead, for comparison")
    num_steps: int = setting(0, help="optimizer steps; 0: as many as num_epochs take")
    num_epochs: float = setting(0.0, help="passes over the training examples, where num_steps is 0")
    label_smoothing: float = setting(0.0, help="the part of the target that is spread over the vocabulary")
    dropout: float | None = setting(None, help="rate of every dropout of both sides; unset: as the checkpoints say")
    remat: str = setting("none", help="what the backward pass recomputes to save memory (models/stack.py)")
    log_every: int = setting(10, help="steps between lines of metrics.jsonl", may_change=True)
    seed: int = setting(0, help="of new weights, the order of examples and dropout")

    def __post_init__(self):
        _check_counts(self, "config", ("log_every",))
        _check_counts(self, "config", ("num_steps", "seed"), low=0)
        check(
            (self.num_steps > 0) != (self.num_epochs > 0),
            f"num_steps is {self.num_steps} and num_epochs {self.num_epochs}; give one of them, and 0 for the other",
        )
        for name in ("label_smoothing", "dropout"):
            value = getattr(self, name)
            check(value is None or 0 <= value < 1, f"{name} is {value!r}; give a number from 0 to below 1")
