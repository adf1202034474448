"""What a fine-tuning run does. The meaning of each field stands in its `help`; `scripts/train.py --config.help` lists
them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seq2seq_jax.config.optimizer import LoraConfig, OptimizerConfig
from seq2seq_jax.config.validation import check, nearest, setting
from seq2seq_jax.config.validation import check_choice as _check_choice
from seq2seq_jax.config.validation import check_counts as _check_counts

# Each with the backend that it needs.
ATTENTION_IMPLS = {"xla": None, "cudnn": "gpu", "splash": "tpu"}
# What the lengths that a kernel takes are multiples of.
KERNEL_LENGTHS = {"xla": 1, "cudnn": 2, "splash": 128}
# Of lengths where nothing is said: fewer shapes, and what vector units like.
LENGTH_MULTIPLE = 8
# Each with jax's name of it.
DROPOUT_BITS = {"threefry": "threefry2x32", "rbg": "rbg", "unsafe_rbg": "unsafe_rbg"}
DTYPES = ("float32", "bfloat16", "float16")
# What the backward pass computes anew; what each name means: models/stack.py.
REMATS = (
    "none", "elementwise", "full", "dots", "dots_with_no_batch_dims", "offload_dots", "save_attention_out", "save_mlp",
)  # fmt: skip
MODES = ("jit", "pmap")
# Each metric with the scores that it gives.
METRICS = {
    "bleu": ("bleu",),
    "chrf": ("chrf",),
    "exact_match": ("exact_match",),
    "rouge": ("rouge1", "rouge2", "rougeL", "rougeLsum"),
}
# What splits texts into words; what each name means: evaluation/metrics.py.
BLEU_TOKENIZERS = (
    "13a", "char", "flores101", "flores200", "intl", "ja-mecab", "ko-mecab", "none", "spBLEU-1K", "zh",
)  # fmt: skip
ROUGE_TOKENIZERS = ("auto", "rouge-score", "unicode", "zh", "ja-mecab", "char")


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from, and what becomes of their texts."""

    train: str = setting(
        help="""training examples: a .jsonl, .csv, .tsv or .parquet file (all but .parquet also as .gz, .bz2, .xz or
        .zst), a shipped set (debian-synopsis:train), or a directory or hub id with a split (owner/name:train)"""
    )
    validation: str | None = setting(None, help="the same for validation; unset: `holdout` of the training examples")
    holdout: int = setting(500, help="how many training examples are held out, at most a tenth, if validation is unset")
    subset: str | None = setting(None, help="which configuration of a hub data set, where it has several")
    source_field: str = setting("document", help="column of the texts to read; within objects as translation.de")
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

    size: int = setting(32, help="rows in a step, over all devices; a row is an example, or with packing several")
    tokens: int | None = setting(
        None, help="padded source and target tokens in a step, instead of size: short examples come in larger batches"
    )
    multiple: int = setting(8, help="with tokens: a batch has a multiple of so many examples; the mesh must divide it")
    buckets: int = setting(1, help="shapes of batches: examples of like length share one; each is compiled once")
    length_multiple: int | None = setting(
        None,
        help="""source and target lengths of a batch are multiples of this, beyond the longest text too; unset: of 8, up
        to the longest text, or with attention_impl splash of 128, with cudnn of 8""",
    )
    packing: bool = setting(
        False, help="a row holds several examples, which do not see each other, instead of one and padding"
    )
    pack_source_length: int | None = setting(None, help="with packing: source tokens in a row; unset: the longest's")
    pack_target_length: int | None = setting(None, help="with packing: target tokens in a row; unset: the longest's")
    accumulation: int = setting(
        1, help="parts into which a batch is split, one after the other, to save memory", may_change=True
    )

    def __post_init__(self):
        lengths = ("pack_source_length", "pack_target_length")
        _check_counts(self, "batch", ("size", "tokens", "multiple", "buckets", "accumulation", "length_multiple"))
        _check_counts(self, "batch", lengths)
        rows, name = (self.size, "size") if self.tokens is None else (self.multiple, "multiple")
        check(
            rows % self.accumulation == 0,
            f"batch.{name} is {rows} and batch.accumulation {self.accumulation}; give a batch that it divides",
        )
        check(
            not self.packing or self.buckets == 1,
            f"batch.buckets is {self.buckets}, and packed batches have one shape; give 1, or packing=False",
        )
        for name in lengths:
            value = getattr(self, name)
            check(
                self.packing or value is None,
                f"batch.{name} is {value}, and nothing is packed; leave it out, or give packing=True",
            )
            step = self.length_multiple or 1
            check(
                (value or 0) % step == 0,
                f"batch.{name} is {value}, and batch.length_multiple {step} does not divide it; give a multiple",
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

    @property
    def sizes(self) -> dict[str, int]:
        """What `make_mesh` takes."""
        return {name: getattr(self, name) for name in ("replica", "data", "fsdp", "tensor")}


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
    rouge_tokenizer: str = setting(
        "auto",
        help="""what splits texts into words for ROUGE: rouge-score (its own, of a-z and 0-9), unicode (words of any
        script), zh, ja-mecab or char (sacrebleu's); auto: rouge-score, or unicode if most letters of the references are
        beyond a-z""",
        may_change=True,
    )
    bleu_tokenize: str = setting(
        "13a", help=f"sacrebleu's tokenizer for BLEU: {', '.join(BLEU_TOKENIZERS)}", may_change=True
    )
    best: str = setting(
        "loss", help="the score whose best checkpoint is kept and exported: loss, rouge2, bleu ...", may_change=True
    )

    def __post_init__(self):
        _check_counts(self, "evaluation", ("every", "batch_size", "decode_limit"))
        for name in self.metrics:
            _check_choice(name, METRICS, "evaluation.metrics")
        _check_choice(self.rouge_tokenizer, ROUGE_TOKENIZERS, "evaluation.rouge_tokenizer")
        _check_choice(self.bleu_tokenize, BLEU_TOKENIZERS, "evaluation.bleu_tokenize")
        scores = ["loss", *(score for name in self.metrics for score in METRICS[name])]
        check(
            self.best in scores,
            f"evaluation.best {self.best!r} is no score of {', '.join(self.metrics)}: {nearest(self.best, scores)}",
        )

    @property
    def tokenizers(self) -> dict[str, str]:
        """Those of the metrics, as `evaluation.metrics.compute_metrics` takes them."""
        return {name: getattr(self, name) for name in ("rouge_tokenizer", "bleu_tokenize")}


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
    lora: LoraConfig = setting(LoraConfig(), help="low-rank adapters")
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
    z_loss: float = setting(0.0, help="factor on the squared log of the softmax's normaliser, added to the loss")
    loss_chunk: int | None = setting(
        None,
        help="target tokens worked on at a time in the loss, evaluated ones too, to save memory; unset: all at once",
        may_change=True,
    )
    loss_vocab_chunk: int | None = setting(
        None,
        help="with loss_chunk: entries of the vocabulary worked on at a time; unset: all at once",
        may_change=True,
    )
    dropout: float | None = setting(None, help="rate of every dropout of both sides; unset: as the checkpoints say")
    attention_dropout: float | None = setting(
        None, help="that of attention's weights alone, which cudnn and splash need to be 0; unset: as the others"
    )
    remat: str = setting(
        "elementwise",
        help=f"what the backward pass computes anew to save memory: {', '.join(REMATS)} (models/stack.py)",
        may_change=True,
    )
    attention_impl: str = setting(
        "xla",
        help="how attention is computed: xla (anywhere), cudnn (NVIDIA GPUs) or splash (TPUs; models/kernels.py)",
        may_change=True,
    )
    scan_unroll: int = setting(
        1, help="layers in one turn of the loop over them: more compile longer and copy less", may_change=True
    )
    dropout_bits: str = setting(
        "threefry",
        help="""generator of dropout's random bits, the same on any mesh: threefry (fastest on CPU), rbg or unsafe_rbg
        (the hardware's, fastest on TPU)""",
    )
    dtype: str = setting(
        "float32",
        help="""what the step computes in, over float32 parameters: float32, bfloat16, or float16 with a loss scale;
        evaluation is float32""",
    )
    ema_decay: float | None = setting(
        None, help="evaluated and exported is the moving average of the parameters of this decay (0.999); unset: they"
    )
    update_norm: bool = setting(
        True, help="the update's norm is a metric too; on a CPU that is 5 to 10 % of a step", may_change=True
    )
    log_every: int = setting(10, help="steps between lines of metrics.jsonl", may_change=True)
    profile_at: int | None = setting(
        None, help="a profile of the steps from this one on is written to profile/, for TensorBoard", may_change=True
    )
    profile_steps: int = setting(3, help="how many steps are in it", may_change=True)
    seed: int = setting(0, help="of new weights, the order of examples and dropout")

    def __post_init__(self):
        _check_counts(self, "config", ("log_every", "profile_at", "profile_steps", "scan_unroll"))
        _check_counts(self, "config", ("loss_chunk", "loss_vocab_chunk"))
        _check_counts(self, "config", ("num_steps", "seed"), low=0)
        check(
            (self.num_steps > 0) != (self.num_epochs > 0),
            f"num_steps is {self.num_steps} and num_epochs {self.num_epochs}; give one of them, and 0 for the other",
        )
        _check_choice(self.attention_impl, ATTENTION_IMPLS, "attention_impl")
        _check_choice(self.remat, REMATS, "remat")
        _check_choice(self.dropout_bits, DROPOUT_BITS, "dropout_bits")
        _check_choice(self.dtype, DTYPES, "dtype")
        for name in ("label_smoothing", "dropout", "attention_dropout", "ema_decay"):
            value = getattr(self, name)
            check(value is None or 0 <= value < 1, f"{name} is {value!r}; give a number from 0 to below 1")
        check(self.z_loss >= 0, f"z_loss is {self.z_loss!r}; give 0 or a number above it, such as 1e-4")
        check(
            self.loss_vocab_chunk is None or self.loss_chunk is not None,
            f"loss_vocab_chunk is {self.loss_vocab_chunk}, and loss_chunk is not given; give both",
        )
        self._fit_lengths()

    def _fit_lengths(self) -> None:
        """Lengths of batches that attention's kernel takes."""
        needed, given = KERNEL_LENGTHS[self.attention_impl], self.batch.length_multiple
        check(
            (given or 0) % needed == 0,
            f"batch.length_multiple is {given}, and attention_impl {self.attention_impl!r} takes multiples of {needed};"
            " give one, or leave it out",
        )
        if given is None and needed > 1:
            batch = dataclasses.replace(self.batch, length_multiple=max(needed, LENGTH_MULTIPLE))
            object.__setattr__(self, "batch", batch)
