"""Settings as frozen dataclasses: of a transformer, of a pair, of generation and of a training run.

They check their values, and have no behaviour.
"""

from seq2seq_jax.config.generation import GenerationConfig
from seq2seq_jax.config.generation_files import generation_from_hf, generation_to_hf
from seq2seq_jax.config.loss import LossConfig
from seq2seq_jax.config.models import (
    ACTIVATIONS,
    PAIR,
    Alias,
    Disentangled,
    EncoderDecoderConfig,
    LayerSettings,
    RelativeBias,
    Rotary,
    TransformerConfig,
)
from seq2seq_jax.config.optimizer import GroupConfig, LoraConfig, OptimizerConfig
from seq2seq_jax.config.training import (
    ATTENTION_IMPLS,
    BLEU_TOKENIZERS,
    DROPOUT_BITS,
    KERNEL_LENGTHS,
    LENGTH_MULTIPLE,
    METRICS,
    OPEN_SECTIONS,
    REMATS,
    ROUGE_TOKENIZERS,
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    TrainConfig,
    check_open_field,
)
from seq2seq_jax.config.validation import (
    alternatives,
    check,
    check_choice,
    check_resumable,
    from_mapping,
    nearest,
    parse_settings,
)

__all__ = [
    "ACTIVATIONS",
    "ATTENTION_IMPLS",
    "BLEU_TOKENIZERS",
    "DROPOUT_BITS",
    "KERNEL_LENGTHS",
    "LENGTH_MULTIPLE",
    "METRICS",
    "OPEN_SECTIONS",
    "PAIR",
    "REMATS",
    "ROUGE_TOKENIZERS",
    "Alias",
    "BatchConfig",
    "CheckpointConfig",
    "DataConfig",
    "Disentangled",
    "EncoderDecoderConfig",
    "EvaluationConfig",
    "GenerationConfig",
    "GroupConfig",
    "LayerSettings",
    "LoraConfig",
    "LossConfig",
    "MeshConfig",
    "OptimizerConfig",
    "RelativeBias",
    "Rotary",
    "TrainConfig",
    "TransformerConfig",
    "alternatives",
    "check",
    "check_choice",
    "check_open_field",
    "check_resumable",
    "from_mapping",
    "generation_from_hf",
    "generation_to_hf",
    "nearest",
    "parse_settings",
]
