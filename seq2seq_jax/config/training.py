"""Settings of a fine-tuning run. Each field's `help` says what it means; `scripts/train.py --config.help` lists
them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seq2seq_jax.config.generation import GenerationConfig
from seq2seq_jax.config.loss import LossConfig
from seq2seq_jax.config.optimizer import LoraConfig, OptimizerConfig
from seq2seq_jax.config.validation import check, check_choice, check_counts, nearest, setting

# Attention kernels -> the backend that each needs.
ATTENTION_IMPLS = {"xla": None, "cudnn": "gpu", "splash": "tpu"}
# Attention kernels -> the number that the lengths must be multiples of.
KERNEL_LENGTHS = {"xla": 1, "cudnn": 2, "splash": 128}
# Lengths are rounded up to multiples of this by default: it makes fewer shapes, and fits vector units.
LENGTH_MULTIPLE = 8
# Random bit generators -> jax's names of them.
DROPOUT_BITS = {"threefry": "threefry2x32", "rbg": "rbg", "unsafe_rbg": "unsafe_rbg"}
DTYPES = ("float32", "bfloat16", "float16")
# What the backward pass finds kept beside each layer's input: name -> the policy, of jax.checkpoint_policies. "none"
# has no policy: everything is kept. "dropped", "attention_out" and "mlp" are names that models/ gives to arrays
# (checkpoint_name); of the attention kernels only splash names its output.
REMATS = {
    "none": None,
    "elementwise": lambda policies: policies.save_from_both_policies(
        policies.dots_saveable, policies.save_only_these_names("dropped", "attention_out")
    ),
    "full": lambda policies: policies.nothing_saveable,
    "dots": lambda policies: policies.checkpoint_dots,
    "dots_with_no_batch_dims": lambda policies: policies.checkpoint_dots_with_no_batch_dims,
    "offload_dots": lambda policies: policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
    "save_attention_out": lambda policies: policies.save_only_these_names("attention_out"),
    "save_mlp": lambda policies: policies.save_only_these_names("mlp"),
}
MODES = ("jit", "pmap")
# Metrics -> the scores that each gives.
METRICS = {
    "bleu": ("bleu",),
    "chrf": ("chrf",),
    "exact_match": ("exact_match",),
    "rouge": ("rouge1", "rouge2", "rougeL", "rougeLsum"),
}
# Tokenizers of the metrics; evaluation/metrics.py says what each does.
BLEU_TOKENIZERS = (
    "13a", "char", "flores101", "flores200", "intl", "ja-mecab", "ko-mecab", "none", "spBLEU-1K", "zh",
)  # fmt: skip
ROUGE_TOKENIZERS = ("auto", "rouge-score", "unicode", "zh", "ja-mecab", "char")


# Sections of a run whose values may be of several types, with the names that they may have; warm_start has
# encoder_<field> and decoder_<field> too, which the families know.
OPEN_SECTIONS = {
    "generation": tuple(field.name for field in dataclasses.fields(GenerationConfig)),
    "warm_start": (
        "cross_attention_init", "decoder_start_token_id", "eos_token_id", "head_init", "pad_token_id",
        "tie_encoder_decoder",
    ),
}  # fmt: skip
SIDE_PREFIXES = ("encoder_", "decoder_")


def check_open_field(section: str, name: str) -> None:
    """A ValueError that suggests the nearest, unless `section` of a run may have a field `name`."""
    known = OPEN_SECTIONS[section]
    if section == "warm_start":
        if name.startswith(SIDE_PREFIXES):
            return
        known = (*known, *(f"{prefix}<field>" for prefix in SIDE_PREFIXES))
    check(name in known, f"config.{section}.{name} is unknown: {nearest(name, known)}")


@dataclass(frozen=True)
class DataConfig:
    """The examples, and how their texts are prepared."""

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
        check_counts(self, "data", ("holdout", "max_source_length", "train_limit", "validation_limit"))
        check_counts(self, "data", ("max_target_length",), low=2)
        check_counts(self, "data", ("min_source_length", "min_target_length"), low=0)
        check_choice(self.long_examples, ("cut", "drop"), "data.long_examples")


@dataclass(frozen=True)
class BatchConfig:
    """The batch of one optimizer step."""

    size: int = setting(32, help="rows in a step, over all devices; a row is an example, or with packing several")
    tokens: int | None = setting(
        None, help="padded source and target tokens in a step, instead of size: short examples come in larger batches"
    )
    multiple: int = setting(8, help="with tokens: a batch has a multiple of so many examples; the mesh must divide it")
    buckets: int = setting(1, help="buckets by length, each a shape of batches with a compiled step of its own")
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
        check_counts(self, "batch", ("size", "tokens", "multiple", "buckets", "accumulation", "length_multiple"))
        check_counts(self, "batch", lengths)
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
    """Sizes of the mesh axes, of which one may be -1 (the remaining devices), and how a step runs on them."""

    replica: int = setting(
        1, help="copies of the model, in each of which the other axes split it; goes over slices", may_change=True
    )
    data: int = setting(-1, help="parts of the batch; -1: the remaining devices", may_change=True)
    fsdp: int = setting(1, help="parts of batch, weights and optimizer state", may_change=True)
    tensor: int = setting(1, help="parts of heads, MLP and vocabulary", may_change=True)
    mode: str = setting(
        "jit",
        help="jit: one program over the mesh; pmap: a copy of model and optimizer on each device, data only",
        may_change=True,
    )

    def __post_init__(self):
        check_choice(self.mode, MODES, "mesh.mode")
        split = {name: getattr(self, name) for name in ("replica", "fsdp", "tensor") if getattr(self, name) != 1}
        named = ", ".join(f"mesh.{name} is {size}" for name, size in split.items())
        check(
            self.mode == "jit" or not split,
            f"mesh.mode is pmap, which splits the batch over data alone, and {named}; give 1, or mesh.mode=jit",
        )

    @property
    def sizes(self) -> dict[str, int]:
        """Arguments of `make_mesh`."""
        return {name: getattr(self, name) for name in ("replica", "data", "fsdp", "tensor")}


@dataclass(frozen=True)
class EvaluationConfig:
    """How the validation examples are scored."""

    every: int | None = setting(None, help="steps between evaluations; unset: only at the end", may_change=True)
    at_start: bool = setting(False, help="also before the first step", may_change=True)
    batch_size: int = setting(16, help="examples decoded at once", may_change=True)
    decode_limit: int | None = setting(
        None, help="how many examples are decoded, but at the end, where all are; unset: all", may_change=True
    )
    metrics: tuple[str, ...] = setting(("rouge",), help=f"any of {', '.join(METRICS)}", may_change=True)
    rouge_tokenizer: str = setting(
        "auto",
        help="""tokenizer for ROUGE: rouge-score (its own, of a-z and 0-9), unicode (words of any
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
        check_counts(self, "evaluation", ("every", "batch_size", "decode_limit"))
        for name in self.metrics:
            check_choice(name, METRICS, "evaluation.metrics")
        check_choice(self.rouge_tokenizer, ROUGE_TOKENIZERS, "evaluation.rouge_tokenizer")
        check_choice(self.bleu_tokenize, BLEU_TOKENIZERS, "evaluation.bleu_tokenize")
        scores = ["loss", *(score for name in self.metrics for score in METRICS[name])]
        check(
            self.best in scores,
            f"evaluation.best {self.best!r} is no score of {', '.join(self.metrics)}: {nearest(self.best, scores)}",
        )

    @property
    def tokenizers(self) -> dict[str, str]:
        """The tokenizers' arguments of `evaluation.metrics.measure`."""
        return {name: getattr(self, name) for name in ("rouge_tokenizer", "bleu_tokenize")}


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints, from which the same command continues a stopped run."""

    every: int = setting(1000, help="steps between checkpoints; one comes with each evaluation too", may_change=True)
    keep: int = setting(1, help="how many of the last checkpoints are kept, beside the best", may_change=True)

    def __post_init__(self):
        check_counts(self, "checkpoints", ("every", "keep"))


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
    label_smoothing: float = setting(0.0, help="share of the target probability that is spread over the vocabulary")
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
        help=f"what the backward pass recomputes to save memory: {', '.join(REMATS)}",
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
        None, help="decay (0.999) of a moving average of the parameters, which is evaluated and exported; unset: none"
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
        check_counts(self, "config", ("log_every", "profile_at", "profile_steps", "scan_unroll"))
        check_counts(self, "config", ("loss_chunk", "loss_vocab_chunk"))
        check_counts(self, "config", ("num_steps", "seed"), low=0)
        for section in OPEN_SECTIONS:
            for name in getattr(self, section):
                check_open_field(section, name)
        check(
            (self.num_steps > 0) != (self.num_epochs > 0),
            f"num_steps is {self.num_steps} and num_epochs {self.num_epochs}; give one of them, and 0 for the other",
        )
        check_choice(self.attention_impl, ATTENTION_IMPLS, "attention_impl")
        check_choice(self.remat, REMATS, "remat")
        check_choice(self.dropout_bits, DROPOUT_BITS, "dropout_bits")
        check_choice(self.dtype, DTYPES, "dtype")
        for name in ("dropout", "attention_dropout", "ema_decay"):
            value = getattr(self, name)
            check(value is None or 0 <= value < 1, f"{name} is {value!r}; give a number from 0 to below 1")
        check(
            self.loss_vocab_chunk is None or self.loss_chunk is not None,
            f"loss_vocab_chunk is {self.loss_vocab_chunk}, and loss_chunk is not given; give both",
        )
        self.loss  # noqa: B018 - it checks its values
        self._fit_lengths()

    @property
    def loss(self) -> LossConfig:
        """The four settings of the loss as one value."""
        return LossConfig(self.label_smoothing, self.z_loss, self.loss_chunk, self.loss_vocab_chunk)

    def _fit_lengths(self) -> None:
        """Makes batch.length_multiple one that the attention kernel takes."""
        needed, given = KERNEL_LENGTHS[self.attention_impl], self.batch.length_multiple
        check(
            (given or 0) % needed == 0,
            f"batch.length_multiple is {given}, and attention_impl {self.attention_impl!r} takes multiples of {needed};"
            " give one, or leave it out",
        )
        if given is None and needed > 1:
            batch = dataclasses.replace(self.batch, length_multiple=max(needed, LENGTH_MULTIPLE))
            object.__setattr__(self, "batch", batch)
